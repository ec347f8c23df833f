"""Which schedules to simulate, from what was asked on the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..configs.load import load_config
from ..configs.parallel import ParallelConfig
from ..configs.schema import POLICIES, BlocksConfig, Config
from ..models.arch import ModelArch, find_arch
from ..pipeline.branches import check_branches
from ..pipeline.cost import Cost, Seconds, Speed, estimate_seconds, model_cost
from ..pipeline.plan_blocks import find_policy, with_defaults_of
from ..pipeline.policies import check_numbers, make_schedule, with_own_numbers
from ..pipeline.schedule import BlockSchedule
from ..pipeline.simulate import Report, Slots, count_slots, simulate

_BLOCKS = 33  # of a video whose length nobody gives


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One video, and the stages it is to be made on."""

    blocks: BlocksConfig
    steps: int
    num_latents: int
    num_stages: int  # of a chain
    cfg: str = "batch"  # split: a chain for each branch of guidance
    new_prompts: tuple[int, ...] = ()  # blocks that begin with another prompt
    config: Config | None = None  # of the preset, where a model was named

    @property
    def arch(self) -> ModelArch:
        assert self.config is not None
        return find_arch(self.config.model.arch)

    @property
    def schedule(self) -> BlockSchedule:
        blocks = _as_rendered(self.blocks, self.config, self.steps)
        schedule = make_schedule(blocks, self.steps, self.num_latents)
        return replace(schedule, new_prompts=self.new_prompts)

    def cost(self, seconds: Seconds) -> Cost:
        assert self.config is not None
        video, mode = self.config.video, self.config.sampling.guidance_mode
        both = _guided(self.config) and self.cfg != "split"  # branches on one chain
        return model_cost(
            self.arch,
            height=video.height,
            width=video.width,
            dtype=self.config.model.dtype,
            passes=2 if both and mode == "sequential" else 1,
            samples=2 if both and mode == "batched" else 1,
            branches=2 if self.cfg == "split" else 1,
            seconds=seconds,
        )

    def estimate(self, speed: Speed) -> Cost:
        return self.cost(estimate_seconds(self.arch.dit, self.arch.text_len, speed))


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came out for one policy on a number of stages."""

    policy: str
    num_latents: int
    num_stages: int
    num_devices: int
    num_blocks: int
    num_tasks: int
    slots: Slots
    report: Report | None  # in seconds, where a model was named

    def flat(self) -> dict[str, object]:
        """For JSON."""
        row = {
            "policy": self.policy,
            "stages": self.num_stages,
            "devices": self.num_devices,
            "latents": self.num_latents,
            "blocks": self.num_blocks,
            "tasks": self.num_tasks,
            **asdict(self.slots),
        }
        known = ("num_stages", "num_devices", "num_blocks", "num_tasks")
        times = asdict(self.report) if self.report else {}
        return row | {name: value for name, value in times.items() if name not in known}


def make_setting(
    *,
    preset: str | None,
    policy: str | None,
    steps: int | None,
    num_blocks: int | None,
    num_latents: int | None,
    num_stages: int | None,
    cfg: str | None,
    numbers: dict[str, int | None],
    new_prompts: Sequence[int] = (),
) -> Setting:
    """ValueError where the numbers make no video, or the model has too few layers."""
    for name, value in (("stages", num_stages), ("blocks", num_blocks), ("latents", num_latents)):
        if value is not None and value < 1:
            raise ValueError(f"--{name}={value} leaves nothing to simulate; give at least 1")
    if num_blocks is not None and num_latents is not None:
        raise ValueError(
            f"--blocks={num_blocks} and --latents={num_latents} both say how long the video is; "
            "leave one out"
        )
    config = None if preset is None else load_config(preset)
    given: dict[str, Any] = {name: n for name, n in numbers.items() if n is not None}
    if policy is not None:
        given["policy"] = policy
    if new_prompts:
        given["recache"] = "prompt"
    blocks = replace(config.blocks if config else BlocksConfig(), **given)
    if blocks.policy == "auto":
        name = "dualparal-grouped"
        if config is not None:
            name = find_policy(config, find_arch(config.model.arch), num_latents)
        blocks = replace(blocks, policy=name)
    check_numbers(blocks, config.blocks if config else None)
    if steps is None:
        steps = config.sampling.steps if config else 50
    if not 1 <= steps <= 1000:
        raise ValueError(f"--steps={steps} makes no row of noise levels; give 1 to 1000")
    if num_latents is None:
        size = _size(_as_rendered(blocks, config, steps), steps)
        num_latents = (num_blocks or _BLOCKS) * size
    parallel = config.parallel if config else ParallelConfig()
    if cfg is not None:
        parallel = replace(parallel, cfg=cfg)
    if config is not None:
        config = replace(config, parallel=parallel)
        check_branches(config, _guided(config))
    setting = Setting(
        blocks=blocks,
        steps=steps,
        num_latents=num_latents,
        num_stages=_stages(num_stages, config),
        cfg=parallel.cfg,
        new_prompts=tuple(sorted(new_prompts)),
        config=config,
    )
    made = setting.schedule.num_blocks or 0
    for block in new_prompts:
        if not 0 < block < made:
            raise ValueError(
                f"--new-prompt={block} is no block after the first, so no prompt changes there; "
                f"give one of 1 to {made - 1}"
            )
    return setting


def _guided(config: Config) -> bool:
    scales = (config.sampling.guidance, config.sampling.guidance_low or 0.0)
    return max(scales) > 1 and config.sampling.guidance_mode != "none"


def _as_rendered(blocks: BlocksConfig, config: Config | None, steps: int) -> BlocksConfig:
    if config is None:
        return blocks
    return with_defaults_of(find_arch(config.model.arch), blocks, steps)


def _stages(given: int | None, config: Config | None) -> int:
    if config is None:
        return 8 if given is None else given
    layers = find_arch(config.model.arch).dit.num_layers
    if given is not None and given > layers:
        raise ValueError(
            f"--stages={given} leaves {given - layers} of them without a layer, as "
            f"{config.model.arch} has {layers}; give at most {layers}"
        )
    return min(8, layers) if given is None else given


def _size(blocks: BlocksConfig, steps: int) -> int:
    if blocks.policy == "whole":
        raise ValueError(
            "--policy=whole makes one block of the whole video, so --blocks says nothing about its "
            "length; give --latents"
        )
    return make_schedule(blocks, steps, None).size


def run(setting: Setting, cost: Cost | None) -> Row:
    schedule = setting.schedule
    num_blocks = schedule.num_blocks
    assert num_blocks is not None
    return Row(
        policy=setting.blocks.policy,
        num_latents=setting.num_latents,
        num_stages=setting.num_stages,
        num_devices=setting.num_stages * (2 if setting.cfg == "split" else 1),
        num_blocks=num_blocks,
        num_tasks=sum(1 for _ in schedule.tasks()),
        slots=count_slots(schedule, setting.num_stages),
        report=None if cost is None else simulate(schedule, setting.num_stages, cost),
    )


def compare(setting: Setting, cost: Cost | None) -> Iterator[Row]:
    """The same length of video by every policy with its own numbers, on 1, 2, 4, ... stages."""
    counts = [1]
    while counts[-1] * 2 <= setting.num_stages:
        counts.append(counts[-1] * 2)
    for policy in POLICIES:
        if policy == "auto":
            continue
        blocks = setting.blocks
        if policy != blocks.policy:
            blocks = with_own_numbers(blocks, policy)
        for count in sorted({*counts, setting.num_stages}):
            yield run(replace(setting, blocks=blocks, num_stages=count), cost)
