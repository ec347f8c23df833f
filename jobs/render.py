"""One request to one file, to a stream of frames, or to latents: what every entry point calls."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from ..configs.checks import check_given
from ..configs.files import expand
from ..configs.load import load_config, shipped
from ..configs.schema import Config
from ..pipeline.generator import Generator, Report, quiet
from ..pipeline.noise import check_seed
from ..pipeline.plan import Plan, make_plan
from ..pipeline.plan_blocks import check_asked
from ..pipeline.request import Request
from .cluster import open_backend
from .home.durable import PART
from .stream import FrameStream
from .target import check_output, kept
from .video import Video

_ON_THE_WAY = ".longreel-"  # how names of folders begin that a file is made in
_SURELY_HELD_S = 60.0  # after a process has made one


def plan_render(
    prompt: str,
    *,
    preset: str | None = None,
    frames: int | None = None,
    seed: int = 0,
    image: str | Path | None = None,
    prompt_at: Sequence[tuple[float, str]] = (),
    overrides: Sequence[str] = (),
    before: Config | None = None,
) -> Plan:
    """A request in the words people use, checked; nothing is loaded. `before`: as `load_config`."""
    _check_list(overrides)
    if frames is not None:
        check_once("frames", frames, "video.frames", overrides)
        overrides = [*overrides, f"video.frames={frames}"]
    config = load_config(preset, overrides, before)
    check_asked(config, before or shipped(config))
    path = None if image is None else _path("image", image)
    return make_plan(
        Request(
            prompt=prompt,
            config=config,
            seed=check_seed(seed),
            image=path,
            prompt_at=_changes(prompt_at),
        )
    )


def _check_list(overrides: Sequence[str]) -> None:
    if isinstance(overrides, str):
        raise ValueError(
            f"overrides={overrides!r} is one text, and each of its letters would be an override; "
            f"give a list: overrides=[{overrides!r}]"
        )
    is_list = isinstance(overrides, Sequence)
    if not is_list or not all(isinstance(override, str) for override in overrides):
        raise ValueError(
            f"overrides={overrides!r} is no list of texts, so nothing would be set; write it like "
            "overrides=['sampling.steps=20']"
        )


def _path(field: str, value: str | Path) -> Path:
    if not isinstance(value, str | Path):
        raise ValueError(
            f"{field}={value!r} is no path, so no file is meant; give it as text or as a "
            "pathlib.Path"
        )
    check_given(field, str(value), "no file is meant")
    return expand(value)


def _changes(prompt_at: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    try:
        return tuple((float(second), text) for second, text in prompt_at)
    except (TypeError, ValueError):
        raise ValueError(
            f"prompt_at={prompt_at!r} is no list of seconds, each with the prompt from then on; "
            "write it like prompt_at=[(4.0, 'a dog')]"
        ) from None


def check_file(plan: Plan, path: Path, home: Path | None = None, made: int = 0) -> None:
    """ValueError unless the video of this plan can be written there, and to `home` (none: beside
    it) the segments and latents that it is made of, but for those of frames that are made."""
    config, video = plan.config, plan.config.video
    _check_end(plan)
    size = {"height": video.height, "width": video.width}
    what, folder = (f"--home={home}", home) if home else ("its segments", path.parent)
    beside = [kept(plan, what, folder, made)]
    check_output(path, config.output, num_frames=video.frames, **size, beside=beside)


def render_file(plan: Plan, output: str | Path, report: Report = quiet) -> Video:
    """Render to a file (or a folder of pictures), which appears when it is complete."""
    from .home.home import Home
    from .home.lock import read_by_us
    from .home.record import RenderRun

    path = _path("output", output)
    whole = path.absolute()  # the working directory may change while a render runs
    _sweep(whole.parent)
    check_file(plan, path)
    # segments on the way, as for the command line, so that both write the same bytes
    with (
        TemporaryDirectory(prefix=_ON_THE_WAY, suffix=PART, dir=whole.parent) as folder,
        read_by_us(Path(folder)),
    ):
        render = Home(Path(folder)).create(plan)
        RenderRun(render, report).run()
        render.export(whole)
    video = plan.config.video
    return Video(path=path, config=plan.config, num_frames=video.frames, fps=video.fps)


def _sweep(folder: Path) -> None:
    """Without what processes that were killed have left there of theirs."""
    from .home.lock import is_read

    for left in folder.glob(f"{_ON_THE_WAY}*{PART}"):
        with suppress(OSError):  # another has removed it, or it is another's
            is_old = time.time() - left.stat().st_mtime > _SURELY_HELD_S
            if is_old and is_read(left) is False:
                shutil.rmtree(left, ignore_errors=True)


def stream_chunks(plan: Plan, report: Report = quiet) -> FrameStream:
    """Frames as they become final; the checkpoint is checked before this returns."""
    return FrameStream(Generator(plan, report, open_backend))


def render_latents(plan: Plan, report: Report = quiet) -> Tensor:
    _check_end(plan)
    return Generator(plan, report, open_backend).latents()


def _check_end(plan: Plan) -> None:
    if not plan.config.video.frames:
        raise ValueError(
            "video.frames=0 never ends, and what is asked for is complete at the end; give a "
            "number of frames, or take them as they come with longreel.stream()"
        )


def check_once(option: str, given: object, field: str, overrides: Sequence[str]) -> None:
    """ValueError where an option and an override set the same."""
    for override in overrides:
        key, _, value = override.partition("=")
        if key.strip() == field:
            raise ValueError(
                f"{option}={given} and {field}={value} are both given, and only one can be meant; "
                "leave one out"
            )
