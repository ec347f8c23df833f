"""A window on one device beside the same window shared by several, in turn, a process for each.

    python benchmarks/sequence.py                    # 2 ranks: heads exchanged, then keys round
    python benchmarks/sequence.py --mesh 2x2         # ring x ulysses
    python benchmarks/sequence.py --device cuda      # a GPU for each rank where there are enough

Layers only, one thread a process. Bytes are those that a rank sends in a layer, beside what the
mesh derives: 4 L/P D (1 - 1/U) of queries, keys, values and results where U ranks exchange heads,
2 L/R D/U (R - 1) of keys and values where R shards go round; L tokens, D width, P = R U ranks.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import torch

from longreel.models.arch import WanArch
from longreel.models.protocol import DiTState
from longreel.models.random_weights import fill_random
from longreel.models.wan import WanDiT
from longreel.parallel.group import Group, GroupSpec
from longreel.parallel.link import Rendezvous
from longreel.parallel.mesh import Mesh
from longreel.parallel.sequence import Share

ARCH = WanArch(num_layers=4, num_heads=8, head_dim=64, ffn_dim=2048, text_dim=64, freq_dim=64)
SMALL = {"latents": 5, "rows": 20, "columns": 20}  # 2,000 tokens
WAN = replace(ARCH, num_heads=12, head_dim=128, ffn_dim=8960)  # layers of Wan 2.1 1.3B
LARGE = {"latents": 21, "rows": 30, "columns": 52}  # 480p: 32,760 tokens


def build(device: torch.device) -> tuple[WanDiT, DiTState]:
    large = device.type == "cuda"
    dtype, grid = (torch.bfloat16, LARGE) if large else (torch.float32, SMALL)
    with torch.device("meta"):
        model = WanDiT(WAN if large else ARCH)
    fill_random(model, seed=1, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    shape = 1, 16, grid["latents"], 2 * grid["rows"], 2 * grid["columns"]
    latents = torch.randn(shape, generator=generator).to(device)
    text = torch.randn(1, 64, 64, generator=generator).to(device, dtype)
    return model, model.embed(latents, torch.tensor([[500.0]]), text)


def derived_bytes(mesh: Mesh, tokens: int, width: int, size: int) -> float:
    ring, line = mesh.ring, mesh.ulysses
    exchanged = 4 * tokens / (ring * line) * width * (1 - 1 / line)
    round_it = 2 * tokens / ring * width / line * (ring - 1)
    return (exchanged + round_it) * size


@torch.inference_mode()
def work(number: int, mesh: Mesh, port: int, name: str, kind: str, runs: int) -> None:
    """One rank; the first prints what came out."""
    torch.set_num_threads(1)
    device = torch.device(kind)
    if kind == "cuda":
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    own_gpus = kind == "cuda" and torch.cuda.device_count() >= mesh.size

    def group(members: tuple[int, ...], line: str, kind: str) -> Group:
        return Group(
            GroupSpec(
                kind=kind,
                name=f"{name}/{line}/{members[0]}",
                rank=members.index(number),
                num=len(members),
                host="127.0.0.1",
                port=port,
                timeout_s=300,
            )
        )

    with ExitStack() as stack:
        lines = {dim: mesh.line(number, dim) for dim in ("ring", "ulysses")}
        link = "nccl" if own_gpus else "gloo"
        groups = [
            stack.enter_context(closing(group(line, dim, link))) if len(line) > 1 else None
            for dim, line in lines.items()
        ]
        everyone = stack.enter_context(closing(group(tuple(range(mesh.size)), "all", "gloo")))

        def wait() -> None:
            everyone.swap([torch.ones(1)] * mesh.size, [(1,)] * mesh.size)
            if kind == "cuda":
                torch.cuda.synchronize()

        model, state = build(device)
        share = Share(*groups)
        layers, part = range(model.num_layers), share.take(state)
        alone, shared = [], []
        for _ in range(runs + 1):  # the first is for warming up
            wait()
            start = time.perf_counter()
            if number == 0:
                whole = model.run_layers(state, layers)
                if kind == "cuda":
                    torch.cuda.synchronize()
            alone.append(time.perf_counter() - start)
            wait()
            sent = sum(g.sent_bytes for g in groups if g is not None)
            start = time.perf_counter()
            mine = share.run_layers(model, part, layers)
            wait()
            shared.append(time.perf_counter() - start)
        if number == 0:
            tokens, width = state.tokens_BLD.shape[1:]
            size = state.tokens_BLD.element_size()
            sent = sum(g.sent_bytes for g in groups if g is not None) - sent
            off = whole.tokens_BLD[:, : mine.tokens_BLD.shape[1]].float() - mine.tokens_BLD.float()
            result = {
                "alone_s": statistics.median(alone[1:]),
                "shared_s": statistics.median(shared[1:]),
                "sent": sent / len(layers),
                "derived": derived_bytes(mesh, tokens, width, size),
                "difference": off.abs().max().item(),
                "tokens": tokens,
                "link": link,
            }
            print(json.dumps(result), flush=True)
        wait()  # closing ends the others' waits


def measure(mesh: Mesh, device: str, runs: int) -> None:
    with Rendezvous("127.0.0.1") as meeting:
        ranks = [
            subprocess.Popen(
                [
                    *(sys.executable, "-P", __file__, "--device", device, "--runs", str(runs)),
                    *("--mesh", f"{mesh.ring}x{mesh.ulysses}"),
                    *("--rank", f"{number},{meeting.port},{mesh.ring}x{mesh.ulysses}"),
                ],
                stdout=subprocess.PIPE if number == 0 else None,
                text=True,
            )
            for number in range(mesh.size)
        ]
        try:
            out, _ = ranks[0].communicate(timeout=1800)
            for rank in ranks:
                if rank.wait(60):
                    raise SystemExit(f"a rank ended with {rank.returncode}")
        finally:
            for rank in ranks:
                rank.kill()
    r = json.loads(out)
    print(
        f"ring {mesh.ring} x ulysses {mesh.ulysses} ({r['link']}), {r['tokens']} tokens: "
        f"alone {r['alone_s']:.3f} s, shared {r['shared_s']:.3f} s, "
        f"ratio {r['shared_s'] / r['alone_s']:.3f}; a rank sends {r['sent'] / 1e6:.3f} MB a layer, "
        f"derived {r['derived'] / 1e6:.3f} MB; largest difference {r['difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mesh", nargs="+", default=["1x2", "2x1"], help="ring x ulysses")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    options = parser.parse_args()
    meshes = []
    for text in options.mesh:
        ring, ulysses = map(int, text.split("x"))
        meshes.append(Mesh(ring=ring, ulysses=ulysses))
    if options.rank:
        number, port, name = options.rank.split(",")
        return work(int(number), meshes[0], int(port), name, options.device, options.runs)
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, torch {torch.__version__}, {options.runs} runs, medians")
    for mesh in meshes:
        measure(mesh, options.device, options.runs)
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
