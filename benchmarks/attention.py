"""Attention over lists beside dense attention and FlexAttention, in turn, on the same inputs.

    python benchmarks/attention.py                  # CPU: a few thousand tokens, fp32 and bf16
    python benchmarks/attention.py --device cuda    # Wan 1.3B and 14B at 480p and 720p, bf16

TFLOP/s count listed pairs alone; "speed" is dense seconds over listed seconds, "share" the rate
beside that of dense attention. Then what making the lists costs, of dense attention.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from longreel.kernels.attention import attend
from longreel.kernels.attention_flex import attend_lists_flex
from longreel.kernels.blocks import Blocks, even_starts
from longreel.kernels.choose import choose_dense, choose_lists
from longreel.kernels.pooled import pooled
from longreel.kernels.tiles import Window

DENSITIES = (0.5, 0.25, 0.125)
SHAPES = {  # heads, latents, height, width in tokens
    "cpu": (2, 8, 32, 32),
    "1.3b 480p": (12, 21, 30, 52),
    "1.3b 720p": (12, 21, 45, 80),
    "14b 480p": (40, 21, 30, 52),
    "14b 720p": (40, 21, 45, 80),
}
CHANNELS, TILE = 128, 128


def random_lists(heads: int, tokens: int, density: float) -> Blocks:
    """Every tile of every head sees as many others, drawn by chance."""
    starts = even_starts(tokens, TILE)
    tiles = len(starts) - 1
    ranks = torch.rand(1, heads, tiles, tiles).argsort(-1).argsort(-1)
    return Blocks.from_mask(ranks < max(1, round(density * tiles)), starts, starts)


def seconds(calls: dict[str, Callable[[], object]], device: str, runs: int) -> dict[str, float]:
    """Medians of runs in turn, each after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(runs + 1):
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if i:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def compare(name: str, dtype: torch.dtype, device: str, runs: int, flex: bool) -> None:
    heads, latents, height, width = SHAPES[name]
    tokens = latents * height * width
    q, k, v = (
        torch.randn(1, tokens, heads, CHANNELS, device=device, dtype=dtype) for _ in range(3)
    )
    flops = 4 * tokens**2 * heads * CHANNELS
    chosen = choose_dense(q.device, dtype, CHANNELS, "auto").name
    lists = choose_lists(q.device, "auto").name
    kind = str(dtype).removeprefix("torch.")
    print(f"{name}, {kind}: {tokens} tokens, {heads} heads of {CHANNELS}; dense {chosen}")
    for density in DENSITIES:
        blocks = random_lists(heads, tokens, density).to(q.device)
        calls: dict[str, Callable[[], object]] = {
            "dense": lambda: attend(q, k, v),
            lists: lambda blocks=blocks: attend(q, k, v, blocks),  # type: ignore[misc]
        }
        if flex:
            calls["flex"] = lambda blocks=blocks: attend_lists_flex(q, k, v, blocks)  # type: ignore[misc]
        took, listed = seconds(calls, device, runs), flops * blocks.density()
        dense_rate = flops / took["dense"]
        for who in list(calls)[1:]:
            print(
                f"  density {blocks.density():.3f} {who:10} {took[who]:.4f} s  "
                f"{listed / took[who] / 1e12:.3f} TFLOP/s  speed {took['dense'] / took[who]:.2f}  "
                f"share {listed / took[who] / dense_rate:.2f}  (dense {took['dense']:.4f} s, "
                f"{dense_rate / 1e12:.3f} TFLOP/s)"
            )
    window = Window(tuple(range(latents)), (), height, width, "tiles", False, TILE)
    took = seconds(
        {
            "dense": lambda: attend(q, k, v),
            "top-k": lambda: pooled(q, k, window, 0.25, None),
            "mass": lambda: pooled(q, k, window, 0.25, 0.9),
        },
        device,
        runs,
    )
    for who in ("top-k", "mass"):
        print(f"  lists by {who}: {took[who]:.4f} s, {took[who] / took['dense']:.1%} of dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, nargs="+")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+")
    parser.add_argument("--flex", action="store_true", help="beside FlexAttention, which compiles")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    machine = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU"
    print(f"{machine}, {args.threads} threads, torch {torch.__version__}, {args.runs} runs in turn")
    shapes = args.shape or (list(SHAPES)[1:] if cuda else ["cpu"])
    for name in shapes:
        for dtype in args.dtype or (["bfloat16"] if cuda else ["float32", "bfloat16"]):
            compare(name, getattr(torch, dtype), args.device, args.runs, args.flex)


if __name__ == "__main__":
    main()
