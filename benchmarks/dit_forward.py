"""Our DiT forward beside diffusers' on the same weights, inputs and threads, in turn.

    python benchmarks/dit_forward.py                        # CPU, fp32 and bf16, mid-size shape
    python benchmarks/dit_forward.py --device cuda --shape 1.3b 1.3b-720p

    python benchmarks/dit_forward.py --builders radial pooled local   # and with lists of these

Prints the ratio of medians, ours over theirs: below 1.0 we are faster. With a builder: a step that
is not left dense, of stale one between two looks at everything.
"""

import argparse
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import diffusers
import torch
from diffusers import WanTransformer3DModel
from timing import in_turn, machine

from longreel.configs.attention import BUILDERS, AttentionConfig
from longreel.models.arch import ARCHS, WanArch
from longreel.models.wan import WanDiT, cast
from longreel.parallel.sparse import SparseAttention
from longreel.parallel.tasks import Part, Task


@dataclass(frozen=True)
class Shape:
    arch: WanArch
    grid: tuple[int, int, int]  # latents, latent height, latent width


SHAPES = {
    "mid": Shape(
        WanArch(num_layers=8, num_heads=4, ffn_dim=2048, text_dim=512), (5, 40, 40)
    ),  # dim 512, 2,000 tokens
    "1.3b": Shape(ARCHS["wan2.1-t2v-1.3b"].dit, (21, 60, 104)),  # 480p, 81 frames: 32,760 tokens
    "1.3b-720p": Shape(ARCHS["wan2.1-t2v-1.3b"].dit, (21, 90, 160)),  # 75,600 tokens
}


def build(arch: WanArch, dtype: torch.dtype, device: str) -> tuple[WanDiT, torch.nn.Module]:
    with torch.device(device):
        theirs = WanTransformer3DModel(
            num_attention_heads=arch.num_heads,
            attention_head_dim=arch.head_dim,
            text_dim=arch.text_dim,
            ffn_dim=arch.ffn_dim,
            num_layers=arch.num_layers,
        )
        ours = WanDiT(arch)
    ours.load_state_dict(theirs.state_dict())
    for name, parameter in theirs.named_parameters():
        if not any(part in name for part in theirs._keep_in_fp32_modules):
            parameter.data = parameter.data.to(dtype)
    return cast(ours, dtype).eval(), theirs.eval()


def sparse_forward(
    model: WanDiT, builder: str, inputs: Sequence[torch.Tensor]
) -> Callable[[], torch.Tensor]:
    """A step in the middle of a render, after the one before it."""
    config = AttentionConfig(builder=builder, dense_steps=0.0)
    sparse, num_latents = SparseAttention(config, model.num_layers, 50), inputs[0].shape[2]

    def forward(step: int) -> torch.Tensor:
        part = Part(block=0, start=0, stop=num_latents, step=step, write=True)
        task = Task(number=0, tick=0, parts=(part,), positions=tuple(range(num_latents)))
        state = model.embed(*inputs, order=sparse.order(task))
        attention = sparse.window(task, 0, state.window)
        layers = range(model.num_layers)
        return model.head(model.run_layers(state, layers, attend_tokens=attention))

    forward(25)
    return partial(forward, 26)


@torch.inference_mode()
def compare(
    shape: Shape,
    dtype: torch.dtype,
    device: str,
    runs: int,
    budget_s: float,
    builders: Sequence[str],
) -> None:
    ours, theirs = build(shape.arch, dtype, device)
    latents = torch.randn(1, shape.arch.in_channels, *shape.grid, device=device, dtype=dtype)
    text = torch.randn(1, 512, shape.arch.text_dim, device=device, dtype=dtype)
    t_host = torch.tensor([[700.0]])
    t_device = t_host[0].to(device)

    def our_forward() -> torch.Tensor:
        state = ours.embed(latents, t_host, text)
        return ours.head(ours.run_layers(state, range(ours.num_layers)))

    def their_forward() -> torch.Tensor:
        out: torch.Tensor = theirs(latents, t_device, text, return_dict=False)[0]
        return out

    difference = (our_forward() - their_forward()).abs().max().item()  # warms both up too
    calls = {"ours": our_forward, "theirs": their_forward}
    calls |= {name: sparse_forward(ours, name, (latents, t_host, text)) for name in builders}
    medians = in_turn(calls, device, runs, budget_s)
    print(
        f"{str(dtype).removeprefix('torch.'):9} ours {medians['ours']:.3f} s  "
        f"diffusers {medians['theirs']:.3f} s  ratio {medians['ours'] / medians['theirs']:.3f}  "
        f"max difference {difference:.1e}"
    )
    if device == "cuda":
        for who in ("ours", "theirs"):
            print(f"{'':9} {who}, forward after forward: {_under_load(calls[who])}")
    for name in builders:
        print(
            f"{'':9} {name} {medians[name]:.3f} s  "
            f"of diffusers {medians[name] / medians['theirs']:.3f}  "
            f"of ours, dense {medians[name] / medians['ours']:.3f}"
        )


def _under_load(call: Callable[[], torch.Tensor]) -> str:
    """The GPU's clock and power meanwhile: of two forwards the denser may run at a lower clock."""
    for _ in range(6):  # more kernels than wait in a queue, so it returns within the last of them
        call()
    query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except OSError as error:
        return f"not known ({error})"
    torch.cuda.synchronize()
    return done.stdout.strip() or done.stderr.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", default=["mid"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--budget", type=float, default=600, help="seconds for a type's runs")
    parser.add_argument("--builders", choices=BUILDERS[1:], nargs="+", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    print(f"{machine(args.device, args.runs)}; diffusers {diffusers.__version__}")
    for shape in (SHAPES[name] for name in args.shape):
        tokens = shape.grid[0] * shape.grid[1] * shape.grid[2] // 4
        print(f"dim {shape.arch.dim}, {shape.arch.num_layers} layers, {tokens} tokens", flush=True)
        for name in args.dtype or (["bfloat16"] if cuda else ["float32", "bfloat16"]):
            dtype = getattr(torch, name)
            compare(shape, dtype, args.device, args.runs, args.budget, args.builders)


if __name__ == "__main__":
    main()
