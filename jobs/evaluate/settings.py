"""What is evaluated: policies, lengths and overrides, and the prompts that all of them render."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from ...configs.load import to_yaml
from ...pipeline.parts import fingerprints
from ...pipeline.plan import Plan
from ..render import plan_render
from ..world.captions import caption
from ..world.scene import Scene, random_scene
from ..world.track import LEAST_JUDGED
from ..world.words import FPS, SIZE


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table.

    Without a policy it is the world's own clips, which bound what a render can reach: as they are,
    or with a preset through its VAE and back, which bounds any DiT on its latents.
    """

    preset: str | None
    policy: str
    frames: int
    overrides: tuple[str, ...] = ()

    @property
    def is_truth(self) -> bool:
        """The world's clips as they are: nothing is loaded for them."""
        return not (self.policy or self.preset)

    @property
    def name(self) -> str:
        words = [
            self.policy or ("vae" if self.preset else "truth"),
            str(self.frames),
            *self.overrides,
        ]
        return " ".join([self.preset, *words] if self.preset else words)

    def plan(self, number: int) -> Plan:
        """The render of a prompt, checked. Without a policy, one that has the VAE."""
        assert not self.is_truth, "the world renders nothing"
        return plan_render(
            prompt(number),
            preset=self.preset,
            frames=self.frames,
            seed=number,
            overrides=(
                f"video.height={SIZE}",
                f"video.width={SIZE}",
                f"video.fps={FPS}",
                f"blocks.policy={self.policy or 'auto'}",
                *self.overrides,
            ),
        )

    def check(self) -> None:
        """ValueError for what cannot be made."""
        if not self.is_truth:
            self.plan(0)

    def identity(self, number: int) -> str:
        """All that a clip depends on, besides our code."""
        asked = f"{number}\n{prompt(number)}"
        if self.is_truth:
            return f"truth {self.frames}\n{asked}"
        what = ("" if self.policy else "vae\n") + to_yaml(self.plan(number).config)
        return f"{what}\n{asked}{self._weights}"

    @cached_property
    def _weights(self) -> str:
        plan = self.plan(0)
        if plan.config.parallel.address != "local":  # a cluster's files may be elsewhere
            return ""
        return "".join(f"\n{part} {found}" for part, found in fingerprints(plan).items())


def make_settings(
    *,
    preset: str | None,
    policies: Sequence[str],
    lengths: Sequence[int],
    groups: Sequence[str],
    overrides: Sequence[str],
    truth: bool,
) -> list[Setting]:
    """Every policy at every length with every group of overrides; ValueError before any renders."""
    for frames in lengths:
        if frames < LEAST_JUDGED:
            raise ValueError(
                f"--frames={frames} shows no way that a thing moves, so nothing could be measured; "
                f"give at least {LEAST_JUDGED}, or 81 for the least that targets are set for"
            )
    if truth and (policies or (not preset and (groups or overrides))):
        raise ValueError(
            "--truth measures the world's own clips, which no policy changes, and overrides only "
            "with a preset, through whose VAE they then go; leave these out, or leave --truth out"
        )
    settings = [
        Setting(
            preset=preset,
            policy="" if truth else policy,
            frames=frames,
            overrides=(*overrides, *group.split()),
        )
        for policy, frames, group in product(policies or ["auto"], lengths, groups or [""])
    ]
    for setting in settings:
        setting.check()
    return settings


def scene(number: int) -> Scene:
    """The held-out prompts are those of scenes 0, 1, 2 and so on of the split of that name."""
    return random_scene(number, "held-out")


def prompt(number: int) -> str:
    return caption(scene(number), number)


def clips(settings: Sequence[Setting], count: int) -> Iterator[tuple[Setting, int]]:
    """Prompt by prompt, so that a table of what is there so far compares equal ones."""
    return ((setting, number) for number in range(count) for setting in settings)
