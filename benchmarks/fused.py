"""Norms, modulation, gates and rotary positions: bytes moved a second, beside a copy, in turn.

python benchmarks/fused.py                  # CPU: the definitions, which are what runs there
python benchmarks/fused.py --device cuda    # the Triton kernels beside them
"""

import argparse
from collections.abc import Callable

import torch
from timing import in_turn, machine
from torch import nn

from longreel.kernels.norm import (
    gated_residual,
    gated_residual_reference,
    norm_modulate,
    norm_modulate_reference,
    rms_norm,
)
from longreel.kernels.rope import rms_norm_rotate, rotary_table, rotate

LEVELS = 21
BUDGET_S = 10  # for the runs of a shape


@torch.inference_mode()
def measure(tokens: int, width: int, dtype: torch.dtype, device: str, runs: int) -> None:
    heads, eps = width // 128, 1e-6
    x, y = (torch.randn(1, tokens, width, device=device, dtype=dtype) for _ in range(2))
    scale, shift = (torch.randn(LEVELS, width, device=device) for _ in range(2))
    index = torch.arange(LEVELS, device=device)[None]
    norm = nn.RMSNorm(width, eps, device=device, dtype=dtype).requires_grad_(False)
    table = rotary_table(range(LEVELS), 1, tokens // LEVELS, (44, 42, 42), torch.device(device))

    def turned() -> torch.Tensor:
        return rotate(rms_norm(x, norm).unflatten(-1, (heads, -1)), table)

    out = torch.empty_like(x)
    calls: dict[str, tuple[int, Callable[[], object]]] = {  # tensors read and written
        "copy": (2, lambda: out.copy_(x)),
        "norm + modulation": (2, lambda: norm_modulate(x, scale, shift, index, eps)),
        "  definition": (2, lambda: norm_modulate_reference(x, scale, shift, index, eps)),
        "gate + residual": (3, lambda: gated_residual(x, y, scale, index)),
        "  definition ": (3, lambda: gated_residual_reference(x, y, scale, index)),
        "RMSNorm + rotary": (2, lambda: rms_norm_rotate(x, norm, table, heads)),
        "  definition  ": (2, turned),
    }
    took = in_turn({name: call for name, (_, call) in calls.items()}, device, runs, BUDGET_S)
    rates = {name: passes * x.nbytes / took[name] / 1e9 for name, (passes, _) in calls.items()}
    print(f"{tokens} tokens of {width}, {str(dtype).removeprefix('torch.')}, {LEVELS} levels")
    for name, rate in rates.items():
        print(f"  {name:18} {rate:9.2f} GB/s  {rate / rates['copy']:.2f} of a copy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    print(machine(args.device, args.runs))
    for tokens, width in [(32_760, 1536), (75_600, 5120)] if cuda else [(4_200, 1536)]:
        for dtype in (torch.bfloat16,) if cuda else (torch.float32, torch.bfloat16):
            measure(tokens, width, dtype, args.device, args.runs)


if __name__ == "__main__":
    main()
