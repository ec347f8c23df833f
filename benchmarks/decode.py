"""Frames of `shapes` from latents: our streaming decoder beside diffusers' own, the same weights.

python benchmarks/decode.py [--latents 21] [--runs 5]
"""

import argparse

import torch
from timing import in_turn, machine

from longreel.jobs.render import plan_render
from longreel.models.vae import StreamingDecoder
from longreel.pipeline.parts import load_plan_vae


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, default=21, help="of 12 x 12, four frames each")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plan = plan_render("a red circle", preset="shapes", overrides=["model.device=cpu"])
    vae = load_plan_vae(plan)
    latents_BCTHW = torch.randn(1, vae.config.z_dim, args.latents, 12, 12)
    shape = (1, -1, 1, 1, 1)
    std, mean = (
        torch.tensor(x).view(shape) for x in (vae.config.latents_std, vae.config.latents_mean)
    )

    def ours() -> torch.Tensor:
        return StreamingDecoder(vae).decode(latents_BCTHW)

    def theirs() -> torch.Tensor:
        frames: torch.Tensor = vae.decode(latents_BCTHW * std + mean).sample
        return frames

    difference = (ours() - theirs()).abs().max().item()
    took = in_turn({"ours": ours, "diffusers": theirs}, "cpu", args.runs)
    print(f"{machine('cpu', args.runs)}; {args.latents} latents of 12 x 12, float32")
    for name, seconds in took.items():
        print(f"{name}: {seconds:.3f} s, {1000 * seconds / args.latents:.1f} ms a latent")
    ratio = took["ours"] / took["diffusers"]
    print(f"ours / diffusers: {ratio:.3f}, largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
