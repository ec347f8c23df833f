"""Attention over lists beside dense attention and FlexAttention, in turn, on the same inputs.

    python benchmarks/attention.py                  # CPU: a few thousand tokens, fp32 and bf16
    python benchmarks/attention.py --device cuda    # Wan 1.3B and 14B at 480p and 720p, bf16
    python benchmarks/attention.py --device cuda --tune   # layouts of the Triton kernel instead

TFLOP/s count listed pairs alone; "speed" is dense seconds over listed seconds, "share" the rate
beside that of dense attention. Then what making the lists costs, of dense attention.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from timing import in_turn, machine
from torch import Tensor

from longreel.kernels.attention import attend
from longreel.kernels.attention_flex import attend_lists_flex
from longreel.kernels.attention_layout import launch_options
from longreel.kernels.blocks import Blocks, all_blocks, even_starts
from longreel.kernels.choose import choose_dense, choose_lists
from longreel.kernels.pooled import pooled
from longreel.kernels.tiles import Window

DENSITIES = (1.0, 0.5, 0.25, 0.125)
SHAPES = {  # heads, latents, height, width in tokens
    "cpu": (2, 8, 32, 32),
    "1.3b 480p": (12, 21, 30, 52),
    "14b 480p": (40, 21, 30, 52),
    "1.3b 720p": (12, 21, 45, 80),
    "14b 720p": (40, 21, 45, 80),
}
CHANNELS, TILE = 128, 128
# keys at once, warps, stages of the pipeline, whether keys and values come by tensor descriptor
LAYOUTS = [
    (128, 8, 2, False),
    (128, 8, 3, False),
    (128, 8, 2, True),
    (128, 8, 3, True),
    (64, 8, 3, True),
    (64, 8, 4, True),
    (64, 4, 2, True),
    (64, 4, 2, False),
    (128, 4, 2, True),
]


def random_lists(heads: int, tokens: int, density: float, device: str, tile: int = TILE) -> Blocks:
    """Every tile of every head sees as many others, drawn by chance."""
    if density == 1:
        return all_blocks(tokens, tokens, torch.device(device), tile)
    starts = even_starts(tokens, tile)
    tiles = len(starts) - 1
    ranks = torch.rand(1, heads, tiles, tiles, device=device).argsort(-1).argsort(-1)
    blocks = Blocks.from_mask(ranks < max(1, round(density * tiles)), starts, starts)
    return blocks.to(torch.device(device))


def inputs(name: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    heads, latents, height, width = SHAPES[name]
    shape = 1, latents * height * width, heads, CHANNELS
    return [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]


@torch.inference_mode()
def compare(
    name: str, dtype: torch.dtype, device: str, runs: int, flex: bool, budget_s: float
) -> None:
    q, k, v = inputs(name, dtype, device)
    _, tokens, heads, _ = q.shape
    flops = 4 * tokens**2 * heads * CHANNELS
    dense = choose_dense(q.device, dtype, CHANNELS, "auto").name
    lists = choose_lists(q.device, "auto").name
    kind = str(dtype).removeprefix("torch.")
    calls: dict[str, Callable[[], object]] = {dense: partial(attend, q, k, v)}
    counted = {dense: 1.0}
    for density in DENSITIES:
        blocks = random_lists(heads, tokens, density, device)
        ways = {lists: partial(attend, q, k, v, blocks)}
        if flex:
            ways["flex"] = partial(attend_lists_flex, q, k, v, blocks)
            try:
                ways["flex"]()
            except Exception as error:  # it compiles what it can: ours are measured all the same
                print(f"  FlexAttention left out: {type(error).__name__}: {str(error)[:200]}")
                del ways["flex"]
                flex = False
        for who, call in ways.items():
            label = f"{density:5} {who}"
            calls[label], counted[label] = call, blocks.density()
    _, latents, height, width = SHAPES[name]
    window = Window(tuple(range(latents)), (), height, width, "tiles", False, TILE)
    making = {
        "top-k": partial(pooled, q, k, window, 0.25, None),
        "mass": partial(pooled, q, k, window, 0.25, 0.9),
    }
    took = in_turn(calls | making, device, runs, budget_s)
    rates = {who: flops * share / took[who] / 1e12 for who, share in counted.items()}
    print(f"{name}, {kind}: {tokens} tokens, {heads} heads of {CHANNELS}")
    for who, rate in rates.items():
        print(
            f"  {who:16} {took[who]:.5f} s {rate:8.3f} TFLOP/s  density {counted[who]:.3f}  "
            f"speed {took[dense] / took[who]:.2f}  share {rate / rates[dense]:.2f}"
        )
    for who in making:
        print(f"  lists by {who:7} {took[who]:.5f} s  {took[who] / took[dense]:.1%} of dense")


@torch.inference_mode()
def tune(name: str, runs: int) -> None:
    """Layouts of the Triton kernel on lists of a quarter: what its table is chosen from."""
    from longreel.kernels.attention_triton import attend_lists_triton

    q, k, v = inputs(name, torch.bfloat16, "cuda")
    _, tokens, heads, _ = q.shape
    even = random_lists(heads, tokens, 0.25, "cuda")
    shorter = random_lists(heads, tokens, 0.25, "cuda", 120)
    cases = {"tiles of 128": even, "of 120": shorter, "not known even": replace(even, even=False)}
    exact = {case: attend_lists_triton(q, k, v, blocks)[0] for case, blocks in cases.items()}
    print(f"{name}, bfloat16: TFLOP/s on lists of density 0.25")
    for block_n, warps, stages, descriptors in LAYOUTS:
        rates = []
        for case, blocks in cases.items():
            options = launch_options(blocks.q_tile, blocks.k_tile, CHANNELS) | {
                "BLOCK_N": block_n,
                "num_warps": warps,
                "num_stages": stages,
                "DESCRIPTORS": descriptors,
            }
            call = partial(attend_lists_triton, q, k, v, blocks, options=options)
            try:
                off = (call()[0].float() - exact[case].float()).abs().max().item()
                took = in_turn({"": call}, "cuda", runs)[""]
            except Exception as error:  # a layout that this Triton or GPU does not take
                rates.append(f"{case}: {type(error).__name__}: {str(error).splitlines()[0][:60]}")
                continue
            listed = 4 * tokens**2 * heads * CHANNELS * blocks.density()
            rates.append(f"{case} {listed / took / 1e12:6.1f} (off {off:.0e})")
        way = "descriptors" if descriptors else "pointers"
        print(f"  {block_n:3} keys {warps} warps {stages} stages {way:11} {'  '.join(rates)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, nargs="+")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+")
    parser.add_argument("--flex", action="store_true", help="beside FlexAttention, which compiles")
    parser.add_argument("--tune", action="store_true", help="layouts of the Triton kernel (GPU)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--budget", type=float, default=60, help="seconds for the runs of a shape")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    print(machine(args.device, args.runs), flush=True)
    if args.tune:
        return tune((args.shape or ["14b 480p"])[0], args.runs)
    for name in args.shape or (list(SHAPES)[1:] if cuda else ["cpu"]):
        for dtype in args.dtype or (["bfloat16"] if cuda else ["float32", "bfloat16"]):
            kind = getattr(torch, dtype)
            compare(name, kind, args.device, args.runs, args.flex, args.budget)


if __name__ == "__main__":
    main()
