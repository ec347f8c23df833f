"""Quality of the small models against what we promise of them.

    python benchmarks/quality.py                          # hours; goes on where it stopped
    python benchmarks/quality.py --prompts 4 --frames 257 # a look
    python benchmarks/quality.py --truth                  # the world itself, the upper bound

Held-out prompts of the world of shapes: whole videos and a queue with `shapes`, and the causal
policy with `shapes-live`. Every clip's scores are kept in the output folder as it is done.
"""

import argparse
import os
import platform
import sys
from pathlib import Path

import torch

from longreel.jobs.evaluate.pictures import plot, sheet
from longreel.jobs.evaluate.records import Record, evaluate
from longreel.jobs.evaluate.settings import Setting, clips
from longreel.jobs.evaluate.table import describe, rows, text

SHORT, LONG = 81, 1025
# at least, but for ratios and teleports: at most
TARGETS = {
    "whole": {"prompt": 0.90, "identity": 0.97, "teleports": 0.5},
    "queue": {"prompt": 0.85, "identity": 0.90, "seam": 1.15, "teleports": 1.0},
    "live": {"prompt": 0.80, "identity": 0.85, "seam": 1.15, "teleports": 1.5},
}
AT_MOST = ("seam", "teleports")


def settings(args: argparse.Namespace) -> dict[str, Setting]:
    if args.truth:
        short = Setting(preset=None, policy="", frames=SHORT)
        long = Setting(preset=None, policy="", frames=args.frames)
        return {"whole": short, "queue": long, "live": long}
    return {
        "whole": Setting(preset=args.preset, policy="whole", frames=SHORT),
        "queue": Setting(preset=args.preset, policy="dualparal-grouped", frames=args.frames),
        "live": Setting(preset=args.live_preset, policy="causal", frames=args.frames),
    }


def report(record: Record) -> None:
    print(describe(record), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--frames", type=int, default=LONG, help="of the long videos")
    parser.add_argument("--only", nargs="+", choices=[*TARGETS], default=[*TARGETS])
    parser.add_argument("--preset", default="shapes")
    parser.add_argument("--live-preset", default="shapes-live")
    parser.add_argument("--output", type=Path, default=Path("quality"))
    parser.add_argument("--truth", action="store_true")
    args = parser.parse_args()
    chosen = {name: one for name, one in settings(args).items() if name in args.only}
    different = [*dict.fromkeys(chosen.values())]
    for setting in different:
        setting.check()  # what cannot be had is said now
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; "
        f"{args.prompts} prompts"
    )
    records = evaluate(clips(different, args.prompts), args.output, report)
    table = rows(records)
    sheet(records, args.output, args.output / "sheet.png")
    plot(table, records, args.output / "plot.png")
    print(text(table))
    for name, setting in chosen.items():
        row = next(row for row in table if row["setting"] == setting.name)
        for score, target in TARGETS[name].items():
            value = row[score]
            assert isinstance(value, float | None)
            met = value is not None and (value <= target if score in AT_MOST else value >= target)
            sign = "<=" if score in AT_MOST else ">="
            shown = "-" if value is None else f"{value:.3f}"
            print(f"{name:6} {score:10} {shown} {sign} {target}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
