"""Edits of a finished render: more of it after its end, or some of it made anew.

What an edit replaces is there until it is done; what it does not replace stays as it is, byte for
byte. It ends where segments end, so a section grows to those it touches; the segment behind it is
where what was there is faded in again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ...pipeline.plan import Plan, make_plan
from ...pipeline.prompts import prompts_by_block
from ...pipeline.section import Section, change_prompts
from ..target import check_home
from .latents import KeptLatents
from .ledger import Edit
from .place import resume_command
from .segments import Segment
from .splice import Splice

if TYPE_CHECKING:
    from .folder import RenderFolder

_NONE: Mapping[str, Any] = MappingProxyType({})


def extend(
    folder: "RenderFolder",
    frames: int,
    *,
    prompt: str | None = None,
    prompt_at: Sequence[tuple[float, str]] = (),
    changes: Mapping[str, Any] = _NONE,
    promised: int = 0,
) -> Edit:
    """So many frames more after its end: whoever makes the render next makes them.

    `prompt`: of all of them; none: the last one goes on. `prompt_at`: in seconds of the whole
    video. `changes`: of fields that change no frame, for the checks alone. `promised`: bytes that
    others may yet write to the home.
    """
    desk = _Desk(folder, changes, promised)
    stride = desk.plan.arch.vae.time_stride
    if frames < 1:
        raise ValueError(f"extend={frames} adds no frame to render {folder.id}; give 1 or more")
    if frames % stride:
        below = frames - frames % stride
        choice = f"{below} or {below + stride}" if below else f"{stride}"
        raise ValueError(
            f"extend={frames} comes from no whole number of latents, which are {stride} frames "
            f"each; use {choice}"
        )
    if last := desk.plan.config.video.last_image:
        raise ValueError(
            f"video.last_image={last} is what render {folder.id} ends on, so nothing comes after "
            "it; render anew without it, or use redo"
        )
    total = desk.frames + frames
    section = desk.section(desk.latents.count(desk.frames), desk.latents.count(total), prompt)
    edit = Edit(section=section, first=desk.frames, fade=total, stop=total, frames=total)
    plan = desk.check(edit)
    if prompt_at:
        edit = replace(edit, section=_with_prompts(plan, section, prompt_at))
    desk.note(edit, plan)
    return edit


def redo(
    folder: "RenderFolder",
    first: int,
    stop: int,
    *,
    prompt: str | None = None,
    changes: Mapping[str, Any] = _NONE,
    promised: int = 0,
) -> Edit:
    """Frames from `first` to before `stop` anew, with other noise: made by whoever makes it next.

    `prompt`: of the section; none: those it had. The rest as above.
    """
    desk = _Desk(folder, changes, promised)
    asked = f"redo={first}..{stop}"
    if first > stop:
        raise ValueError(f"{asked} ends before it begins; use redo={stop}..{first}")
    if first == stop:
        raise ValueError(f"{asked} holds no frame; name the one after the last, as {first + 1}")
    if first < 0 or stop > desk.frames:
        raise ValueError(
            f"{asked} is not inside render {folder.id}, whose frames are 0..{desk.frames}"
        )
    touched = [s for s in desk.segments if s.first < stop and first < s.stop]
    if len(touched) == len(desk.segments):
        raise ValueError(
            f"{asked} touches every segment of render {folder.id} (a section grows to "
            "whole ones), so nothing of it would stay; choose fewer frames, or render anew with "
            "another seed"
        )
    after = [s for s in desk.segments if s.first >= touched[-1].stop][:1]
    fade = touched[-1].stop
    edit = Edit(
        section=desk.section(
            desk.latents.count(touched[0].first), desk.latents.count(fade), prompt
        ),
        first=touched[0].first,
        fade=fade,
        stop=after[0].stop if after else fade,
        frames=desk.frames,
    )
    plan = desk.check(edit)
    if not plan.schedule.right:  # it cannot lead to what it does not see: it goes on beside it
        behind = desk.latents.count(edit.stop)
        edit = replace(edit, section=desk.section(edit.section.first, behind, prompt))
        plan = desk.check(edit)
    desk.note(edit, plan)
    return edit


class _Desk:
    """A render that is to be edited, opened and found to be fit for it."""

    def __init__(self, folder: "RenderFolder", changes: Mapping[str, Any], promised: int) -> None:
        self._folder = folder
        self._changes = changes
        self._promised = promised
        check_done(folder)
        self.plan = folder.plan_with(changes)
        self.segments: Sequence[Segment] = folder.segments()
        self.frames = self.segments[-1].stop
        self.latents = KeptLatents(self.segments, self.plan.arch.vae.time_stride)
        if not all(segment.latents for segment in self.segments):
            raise ValueError(
                f"render {folder.id} was made by a longreel that kept no latents, so there is "
                "nothing to go on from; render it again with this one"
            )
        if self.plan.config.blocks.policy == "whole":
            raise ValueError(
                f"blocks.policy=whole made render {folder.id} in one window, which has nothing "
                "before or after it; render it again with blocks.policy=auto, or another policy"
            )

    def section(self, first: int, stop: int, prompt: str | None) -> Section:
        """Of latents."""
        prompts = self._folder.prompts(self.plan)
        if prompt is not None:
            to_end = stop >= self.latents.count(self.frames)
            prompts = change_prompts(prompts, first, None if to_end else stop, prompt)
        revision = self._folder.revision + 1
        return Section(revision=revision, first=first, stop=stop, prompts=prompts)

    def check(self, edit: Edit) -> Plan:
        changes = {**self._changes, "video.frames": edit.frames}
        return make_plan(replace(self._folder.request_with(changes), section=edit.section))

    def note(self, edit: Edit, plan: Plan) -> None:
        """Into the journal, once all that it reads was found whole, and room for what it makes."""
        splice = Splice(plan, edit, self._folder.init, self.segments)
        splice.opening()
        splice.around()
        made = edit.frames - (edit.stop - edit.first)
        check_home(plan, self._folder.path.parents[1], made, self._promised)
        self._folder.edit(edit)


def check_done(folder: "RenderFolder") -> None:
    state = folder.status().state
    if state != "done":
        raise ValueError(
            f"render {folder.id} is {state}, and only what is finished can be extended or redone; "
            + ("wait for it" if state == "running" else f"`{resume_command(folder.path)}` goes on")
        )


def _with_prompts(plan: Plan, section: Section, prompt_at: Sequence[tuple[float, str]]) -> Section:
    schedule, fps = plan.schedule, plan.config.video.fps
    found = prompts_by_block(
        plan.request.prompt,
        prompt_at,
        schedule,
        fps=fps,
        frames_per_latent=plan.arch.vae.time_stride,
    )
    prompts = section.prompts
    for block, text in sorted(found.items())[1:]:
        if block < schedule.first_block:
            raise ValueError(
                f"prompt_at holds a time before the extension, which stays as it is; choose times "
                f"from {(1 + (section.first - 1) * plan.arch.vae.time_stride) / fps:g} s on"
            )
        prompts = change_prompts(prompts, schedule.bounds(block)[0], None, text)
    return replace(section, prompts=prompts)
