"""From what a client asks for to a render in the queue: checked, bounded, with a folder."""

import asyncio
import base64
import binascii
import hashlib
import io
import re
import secrets
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ...configs.load import load_config, preset_names, read_config, to_override
from ...configs.suggest import did_you_mean
from ..home.home import new_name
from ..home.lock import Taken
from ..target import NoRoom, check_home, kept
from .errors import ApiError, is_short, without_paths
from .files import AllFiles
from .limits import Limits
from .logs import complain
from .queue import KeyReusedError, Queue
from .record import NewRender, Record
from .room import check_left, promised
from .schemas import CreateRender, Setting

if TYPE_CHECKING:
    from ...configs.schema import Config
    from ...pipeline.plan import Plan

_GROUPS = ("video", "sampling", "blocks", "output")
_OURS = ("video.last_image", "output.format")  # a file of the server's; what our segments are
_SPOKEN = {"redo": "stop", "extend": "frames"}  # as a person has it, and as a request has it
STRIDE = 4  # frames that a latent stands for, in every model there is; the first stands for one
_FORMATS = ("PNG", "JPEG", "WEBP")
_RETRIED_S = 120.0  # how long a request that is sent again counts as the same


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who asks, and how we would know the same request again."""

    client: str
    key: str | None = None  # Idempotency-Key
    retried: bool = False  # it says that it has sent this before


class Intake:
    """One at a time: to check a request takes a core for some hundredths of a second."""

    def __init__(
        self,
        queue: Queue,
        files: AllFiles,
        limits: Limits,
        preset: str | None,
        overrides: Sequence[str],
    ) -> None:
        """`overrides` are the server's own, under those of a request."""
        self._queue, self._files, self._limits = queue, files, limits
        self.preset, self._overrides = preset, overrides
        self.turn = asyncio.Lock()

    async def accept(
        self, asked: CreateRender, sender: Sender, parent: str | None = None
    ) -> tuple[Record, bool]:
        """The render, and whether it is new. ApiError says what the request cannot have."""
        digest = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
        async with self.turn:
            if (known := self.known(sender, digest)) is not None:
                return known, False
            self.check_room(sender.client)
            render = new_name()
            with self._files.coming(render):
                with said(asked):
                    plan = await asyncio.to_thread(self._make, asked, render)
                now = time.time()
                deadline = None if asked.deadline_s is None else now + asked.deadline_s
                request = _kept(asked, plan, self._preset(asked.preset))
                new = NewRender(
                    render=render,
                    client=sender.client,
                    request=request,
                    digest=digest,
                    priority=asked.priority,
                    deadline_at=deadline,
                    idempotency_key=sender.key,
                    parent=parent,
                    room_bytes=request["frames"] * request["frame_bytes"],
                )
                return await asyncio.to_thread(self._queue.add, new, now)

    def warm_up(self) -> None:
        """Import what checks a request, so that the first one does not wait for it."""
        from ...pipeline.parts import fingerprints
        from ..render import plan_render

        preset, ours = self.preset, self._overrides
        try:
            before = read_config(preset, ours)
            fingerprints(plan_render("a prompt", preset=preset, overrides=ours, before=before))
        except (OSError, ValueError) as error:
            complain("the preset cannot be rendered here", error=str(error))

    def known(self, sender: Sender, digest: str) -> Record | None:
        if sender.key is not None:
            try:
                return self._queue.find_key(sender.client, sender.key, digest)
            except KeyReusedError as error:
                raise ApiError(409, "idempotency_key_reused", str(error)) from error
        if sender.retried:
            return self._queue.find_same(sender.client, digest, time.time() - _RETRIED_S)
        return None

    def check_room(self, client: str) -> None:
        counts, most = self._queue.counts(client), self._limits.queued
        if counts.get("queued", 0) + counts.get("running", 0) + counts.get("paused", 0) >= most:
            raise ApiError(
                429,
                "queue_full",
                f"{most} renders of yours have not ended, which is as many as may wait; wait for "
                "some to end, or cancel some",
                headers={"retry-after": "10"},
            )

    async def check_left(self, record: Record) -> None:
        """ApiError where one that is to go on would find no room."""
        try:
            await asyncio.to_thread(check_left, record, self._queue, self._files)
        except NoRoom as error:
            raise _no_room(error) from None

    def _make(self, asked: CreateRender, render: str) -> "Plan":
        """With its folder."""
        from ..render import plan_render

        self._check_words(asked)
        preset = self._preset(asked.preset)
        theirs = [*_overrides(asked.settings)]
        ours = _without(self._overrides, {_key(one) for one in theirs})
        before = None
        with suppress(ValueError):  # ours may fit a preset of theirs by what else is theirs
            before = read_config(preset, ours)
        config = load_config(preset, [*ours, *theirs], before)
        frames = asked.frames
        if frames is not None and asked.seconds is not None:
            raise ValueError(
                f"frames={frames} and seconds={asked.seconds:g} are both given, and only one can "
                "be meant; leave one out"
            )
        if frames is None and asked.seconds is not None:
            frames = frames_of(asked.seconds, config.video.fps)
        if frames is not None:
            ours = _without(ours, {"video.frames"})
        self._check_size(config, config.video.frames if frames is None else frames)
        with self._picture(asked.image) as image:
            plan = plan_render(
                asked.prompt,
                preset=preset,
                frames=frames,
                seed=asked.seed,
                image=image,
                prompt_at=[(change.seconds, change.prompt) for change in asked.prompt_at],
                overrides=[*ours, *theirs],
                before=before,
            )
            others = promised(self._queue, self._files)
            check_home(plan, self._files.home.path, promised=others)
            self._files.home.create(plan, name=render)
            return plan

    def _preset(self, asked: str | None) -> str | None:
        if asked and asked not in (names := preset_names()):
            raise ValueError(
                f"preset={asked} is no preset, and this server opens no file for a client; "
                f"{did_you_mean(asked, names)}give one of {', '.join(names)}"
            )
        return asked or self.preset

    def _check_words(self, asked: CreateRender) -> None:
        words = [asked.prompt, *(change.prompt for change in asked.prompt_at)]
        self.check_length(words + [v for v in asked.settings.values() if isinstance(v, str)])

    def check_length(self, words: Sequence[str]) -> None:
        """Of prompts."""
        longest = max(map(len, words), default=0)
        if longest > self._limits.prompt_chars:
            raise ValueError(
                f"prompt has {longest} characters and this server reads {self._limits.prompt_chars}"
                "; make it shorter"
            )

    def _check_size(self, config: "Config", frames: int) -> None:
        limits, video = self._limits, config.video
        bounds = {
            "video.frames": (frames, limits.frames),
            "video.height x video.width": (video.height * video.width, limits.pixels),
            "sampling.steps": (config.sampling.steps, limits.steps),
            # latents, but a block cannot see more of them than there are frames
            "blocks.left": (config.blocks.left or 0, limits.frames),
            "blocks.right": (config.blocks.right or 0, limits.frames),
        }
        for name, (value, most) in bounds.items():
            if value > most:
                raise ValueError(
                    f"{name}={value} is more than the {most} that this server makes; ask for less"
                )
        if frames == 0:
            raise ValueError(
                "video.frames=0 never ends, and every render of a server does; give a number of "
                "frames, and cancel or extend it"
            )

    @contextmanager
    def _picture(self, image: str | None) -> Iterator[Path | None]:
        """A file of it for as long as the request is looked at; its folder has a copy."""
        if image is None:
            yield None
            return
        data = _decode(image)
        suffix = _check_picture(data, self._limits.upload_pixels)
        path = self._files.uploads / f"{secrets.token_hex(8)}.{suffix}"
        try:
            path.write_bytes(data)
            yield path
        finally:
            path.unlink(missing_ok=True)


def frames_of(seconds: float, fps: int) -> int:
    """The nearest number of frames that whole latents make."""
    return 1 + STRIDE * max(0, round((seconds * fps - 1) / STRIDE))


@contextmanager
def said(asked: BaseModel) -> Iterator[None]:
    """What a request cannot have, without what the server's folders are called."""
    try:
        yield
    except Taken:
        raise ApiError(409, "running", "another process is at it; try again later") from None
    except NoRoom as error:
        raise _no_room(error) from None
    except ValueError as error:
        if (cause := error.__cause__) is not None and is_short(cause):
            raise cause from None  # no fault of the request
        message = without_paths(str(error))
        raise ApiError(422, "invalid_request", message, field=_field(message, asked)) from error


def _no_room(error: NoRoom) -> ApiError:
    return ApiError(503, "no_room", str(error), headers={"retry-after": "5"})


def _field(message: str, asked: BaseModel) -> str | None:
    """What an error begins with, if it is in the request's hands."""
    found = re.match(r"([\w.]+)[ =]", message)
    name = _SPOKEN.get(found[1], found[1]) if found else ""
    fields, settings = type(asked).model_fields, getattr(asked, "settings", None)
    is_setting = settings is not None and name.startswith(tuple(f"{group}." for group in _GROUPS))
    return name if name in fields or name in (settings or ()) or is_setting else None


def _kept(asked: CreateRender, plan: "Plan", preset: str | None) -> dict[str, Any]:
    """The request with its defaults, and the measures that a view of it needs."""
    from .pace import longest_segment

    config, layout, schedule = plan.config, plan.layout, plan.schedule
    request = asked.model_dump(exclude={"image", "deadline_s", "priority"})
    return request | {
        # empty: a file of the server's own, which a request that names none gets again
        "preset": "" if preset and preset.endswith(".yaml") else config.preset,
        "image": asked.image is not None,
        "width": config.video.width,
        "height": config.video.height,
        "fps": config.video.fps,
        "frames": config.video.frames,
        "steps": config.sampling.steps,
        "segment_frames": longest_segment(plan),
        "frame_bytes": kept(plan, "", Path()).num_bytes // config.video.frames,
        "blocks": schedule.num_blocks or 0,
        "stages": layout.num_stages,
        "devices": layout.num_devices,
        "place_timeout_s": config.parallel.place_timeout_s,
    }


def _overrides(settings: dict[str, Setting]) -> Iterator[str]:
    for key, value in settings.items():
        override = to_override(key, value)
        name = _key(override)  # as it is read back, whatever the key looks like
        if name.partition(".")[0] not in _GROUPS or name in _OURS:
            raise ValueError(
                f"{name} is not a client's to set, as files or machines of the server hang on it; "
                f"set fields of {', '.join(_GROUPS)} only, but not {' or '.join(sorted(_OURS))}"
            )
        yield override


def _without(overrides: Sequence[str], keys: Collection[str]) -> list[str]:
    return [one for one in overrides if _key(one) not in keys]


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _decode(image: str) -> bytes:
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("image is no base64, so there is no picture in it; encode it") from error


def _check_picture(data: bytes, most: int) -> str:
    """Its format's name, from its header; nothing is decoded of one that is too large."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
                pixels, kind = picture.width * picture.height, picture.format
                if getattr(picture, "n_frames", 1) > 1:
                    raise ValueError("image is an animation, of which one picture is wanted")
    except (UnidentifiedImageError, OSError, SyntaxError, Warning) as error:
        raise ValueError(
            "image is no picture that this server reads; send PNG, JPEG or WebP"
        ) from error
    except Image.DecompressionBombError:
        pixels, kind = most + 1, ""
    if pixels > most:
        raise ValueError(
            f"image has more than {most} pixels, which would fill the memory for nothing; scale it "
            "down to about the size of the video first"
        )
    return str(kind).lower()
