"""How soon a new process has something to show: `shapes-live` beside the imports it cannot avoid.

.venv/bin/python -P benchmarks/start.py [--runs 3] [--preset shapes-live]

Kinds in turn, each in a process of its own with one thread, from its start to the line it prints.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

import torch

_WAIT_S = 300.0
_LIBRARIES = "from diffusers import AutoencoderKLWan; from transformers import UMT5EncoderModel"
_FIRST_FRAME = """
import longreel
settings = ["model.device=cpu", "model.text_cache=", *{more}]
for chunk in longreel.stream("a red circle", preset="{preset}", frames=33, overrides=settings):
    print(chunk.start, flush=True)
"""


def kinds(preset: str) -> dict[str, str]:
    """What each process runs, by name."""
    ray = ["parallel.num_stages=2", "parallel.backend=ray"]
    return {
        "import longreel": "import longreel; print(0, flush=True)",
        "longreel --help": "import sys; sys.argv = ['longreel', '--help']\n"
        "from longreel.jobs.cli import main; main()",
        "import torch": "import torch; print(0, flush=True)",
        "import torch, diffusers' VAE, transformers' UMT5": f"{_LIBRARIES}; print(0, flush=True)",
        "a plan": "from longreel.jobs.render import plan_render\n"
        f"plan_render('a red circle', preset='{preset}'); print(0, flush=True)",
        "first frame, one process": _FIRST_FRAME.format(preset=preset, more=[]),
        "first frame, two stages over Ray": _FIRST_FRAME.format(preset=preset, more=ray),
    }


def seconds(script: str) -> float:
    """To the first line; the process ends by itself."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        took = time.monotonic() - start
        process.communicate(timeout=_WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, f"exit {process.returncode} of {script}"
    assert line, f"no line of {script}"
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--preset", default="shapes-live")
    args = parser.parse_args()
    scripts = kinds(args.preset)
    took: dict[str, list[float]] = {name: [] for name in scripts}
    for _ in range(args.runs):
        for name, script in scripts.items():
            took[name].append(seconds(script))
    load = os.getloadavg()[0]
    print(f"{platform.machine()} CPU, torch {torch.__version__}, load {load:.1f}, {args.preset}")
    middle = {name: statistics.median(values) for name, values in took.items()}
    floor = middle["import torch, diffusers' VAE, transformers' UMT5"]
    for name, value in middle.items():
        print(f"{name}: {value:.1f} s, {value / floor:.2f} of the imports")


if __name__ == "__main__":
    main()
