"""Simulated rows as text."""

from collections.abc import Iterable, Sequence

from ..configs.checks import counted
from .simulate import Row

_GIB = 2**30


def describe(row: Row) -> str:
    """One row, a fact a line."""
    slots, report = row.slots, row.report
    busy = row.num_tasks / slots.total_slots
    facts = {
        "policy": f"{row.policy}, {counted(row.num_blocks, 'block')} of "
        f"{counted(row.num_latents, 'latent')} in all",
        "stages": f"{row.num_stages}{_each(row)}, {row.num_tasks} tasks each",
        "slots": f"{slots.total_slots} in all, first block after {slots.first_block_slots}",
        "idle": f"{slots.idle_slots} slots of each stage ({1 - busy:.1%}), "
        f"{slots.stall_slots} of them neither filling nor draining",
        "late": f"{slots.late_slots} slots, played from the first block on at the steady rate",
    }
    if report is not None:
        idle = ", ".join(f"{share:.1%}" for share in report.idle_share)
        peaks = ", ".join(f"{size / _GIB:.2f}" for size in report.peak_bytes)
        facts |= {
            "time": f"{_seconds(report.total_s)} in all, first frame after "
            f"{_seconds(report.first_frame_s)}, late by {_seconds(report.late_s)}",
            "frames": f"{report.frames_per_s:.3g} a second, "
            f"{report.steady_frames_per_s:.3g} once the ring is full",
            "idle share": f"{idle} (stage 0 first)",
            "peak GiB": f"{peaks} (weights, caches, windows on their way, latents)",
            "hop": f"{report.hop_bytes / 1e6:.1f} MB a pass of a window, "
            f"{report.sent_bytes / 1e9:.1f} GB in all",
        }
        if report.branch_bytes:
            facts["branches"] = f"{report.branch_bytes / 1e9:.1f} GB between them in all"
    return "\n".join(f"{name:10}  {text}" for name, text in facts.items())


def _each(row: Row) -> str:
    if row.num_devices == row.num_stages:
        return ""
    return f" for each branch of guidance, {row.num_devices} devices"


def table(rows: Iterable[Row]) -> str:
    """Rows side by side."""
    lines = list(rows)
    head = ["policy", "stages", "blocks", "tasks", "slots", "idle", "stall", "first", "late"]
    body = [
        [
            row.policy,
            row.num_stages,
            row.num_blocks,
            row.num_tasks,
            row.slots.total_slots,
            row.slots.idle_slots,
            row.slots.stall_slots,
            row.slots.first_block_slots,
            row.slots.late_slots,
        ]
        for row in lines
    ]
    if any(row.report for row in lines):
        head += ["time", "first frame", "frames/s", "idle %", "peak GiB", "hop MB"]
        for cells, row in zip(body, lines, strict=True):
            report = row.report
            assert report is not None
            cells += [
                _seconds(report.total_s),
                _seconds(report.first_frame_s),
                f"{report.frames_per_s:.3g}",
                f"{100 * max(report.idle_share):.1f}",
                f"{max(report.peak_bytes) / _GIB:.2f}",
                f"{report.hop_bytes / 1e6:.1f}",
            ]
    return _align([head, *body])


def _align(rows: Sequence[Sequence[object]]) -> str:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    )


def _seconds(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:.2f} h"
    if value >= 60:
        return f"{value / 60:.2f} min"
    return f"{value:.3g} s"
