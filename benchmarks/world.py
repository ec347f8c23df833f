"""How many seconds of the world's clips are drawn in a second: training must not wait for them.

.venv/bin/python -P benchmarks/world.py [--clips 40]
"""

import argparse
import platform
import time

from longreel.jobs.world.draw import draw
from longreel.jobs.world.scene import random_scene
from longreel.jobs.world.words import FPS

_FRAMES = 81


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    clips = parser.parse_args().clips
    draw(random_scene(0), 0, _FRAMES)  # tables are made once
    begin, busy = time.perf_counter(), time.process_time()
    for seed in range(clips):
        draw(random_scene(seed), 0, _FRAMES)
    took, busy = time.perf_counter() - begin, time.process_time() - busy
    watched = clips * _FRAMES / FPS
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    print(f"{clips} clips of {_FRAMES} frames, {watched:.0f} s to watch, in {took:.2f} s")
    print(f"drawn in a second: {watched / took:.1f} s")
    print(f"drawn in a second of processor time: {watched / busy:.1f} s")


if __name__ == "__main__":
    main()
