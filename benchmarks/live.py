"""Whether shapes-live streams in real time: its first frame, and its frames a second.

.venv/bin/python -P benchmarks/live.py [--frames 257] [--runs 3] [model.dtype=bfloat16 ...]
"""

import argparse
import os
import statistics
import time

import longreel

PROMPT = "two blue squares and a red circle drift slowly to the right over a white background"


def stream_once(frames: int, overrides: list[str]) -> tuple[float, float, float]:
    """Seconds to the first frame; frames a second from then on; seconds a player would wait."""
    start = time.monotonic()
    arrivals = [
        (time.monotonic() - start, chunk.start)
        for chunk in longreel.stream(
            PROMPT, preset="shapes-live", frames=frames, overrides=overrides
        )
    ]
    (first_s, _), (last_s, last_start) = arrivals[0], arrivals[-1]
    late_s = max(at_s - first_s - frame / 16 for at_s, frame in arrivals)
    return first_s, last_start / (last_s - first_s), late_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=257)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    overrides = ["model.text_cache=", *args.overrides]
    runs = [stream_once(args.frames, overrides) for _ in range(args.runs)]
    for first_s, pace, late_s in runs:
        print(
            f"first frame {first_s:.2f} s, then {pace:.1f} frames a second; late by {late_s:.2f} s"
        )
    pace = statistics.median(pace for _, pace, _ in runs)
    print(f"{pace / 16:.2f} of real time (at least 1)   load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
