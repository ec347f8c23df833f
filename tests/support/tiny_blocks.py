"""Tiny random models for tests of block schedules, and settings of every policy for them."""

from dataclasses import replace

from texts import TEXTS

from longreel.models.arch import ModelArch, VaeArch, WanArch

_ARCH = ModelArch(
    dit=WanArch(num_layers=5, num_heads=2, head_dim=16, ffn_dim=24, text_dim=16),
    vae=VaeArch(base_dim=4, num_res_blocks=1),
    text_len=8,
    per_latent_timestep=True,
    causal_windows=True,
)
_SHALLOW = replace(_ARCH, dit=replace(_ARCH.dit, num_layers=3))
ARCHS = {
    "test-blocks": _ARCH,
    "test-causal": replace(_ARCH, causal_latents=3),
    "test-blocks-shallow": _SHALLOW,
    "test-causal-shallow": replace(_SHALLOW, causal_latents=3),
}

_FEW = [
    "sampling.solver=renoise",
    "sampling.timesteps=[1000,750,500,250]",
    "sampling.steps=4",
    "sampling.guidance_mode=none",
    "model.arch=test-causal",
]
_SIDES = ["blocks.size=3", "blocks.left=2"]
POLICIES = {
    "whole": [],
    "dualparal": [*_SIDES, "blocks.right=2"],
    "dualparal-grouped": ["blocks.size=2", "blocks.left=2", "blocks.right=1", "blocks.depth=4"],
    "dualparal-staggered": [*_SIDES, "blocks.right=1", "blocks.stagger=1"],
    "diagonal": ["blocks.size=4"],
    "buffer": ["blocks.size=2", "blocks.left=2"],
    "forcing": ["blocks.size=2", "blocks.left=2", "blocks.stagger=2", "blocks.window=8"],
    "rolling": [*_FEW, "blocks.size=2", "blocks.left=2", "blocks.sink=1"],
    "causal": [*_FEW, "blocks.size=3", "blocks.left=3", "blocks.sink=2"],
}
# other settings, under names of their own
_VARIANTS = {
    "causal-recache": [*POLICIES["causal"], "blocks.recache=prompt"],
    "forcing-causal": [*POLICIES["forcing"], "blocks.causal=2"],
    "forcing-causal-latents": [*POLICIES["forcing"], "blocks.causal=1"],
    "dualparal-grouped-pairs": [*_SIDES, "blocks.right=1", "blocks.depth=1"],
    "dualparal-staggered-wide": [*_SIDES, "blocks.right=1", "blocks.stagger=2"],
}


def shallow(policy: str) -> str:
    """The setting of three layers in the place of five, for what is the same of any number."""
    is_causal = "model.arch=test-causal" in (POLICIES | _VARIANTS)[policy]
    return f"model.arch=test-{'causal' if is_causal else 'blocks'}-shallow"


def overrides(policy: str, *more: str, steps: int = 5) -> list[str]:
    """Of a policy, or of a variant of one; some name timesteps of their own instead of `steps`."""
    name = next(known for known in sorted(POLICIES, reverse=True) if policy.startswith(known))
    settings = [*(POLICIES | _VARIANTS)[policy], "parallel.backend=local", *more]
    modes = [one for one in settings if one.startswith("sampling.guidance_mode=")]
    if modes[-1:] != ["sampling.guidance_mode=none"] and "sampling.guidance=1" not in settings:
        settings.insert(0, "sampling.negative_prompt=a dog")
    return [
        "model.arch=test-blocks",
        "model.checkpoint=random",
        f"model.text_cache={TEXTS}",
        "video.height=16",
        "video.width=32",
        f"sampling.steps={steps}",
        f"blocks.policy={name}",
        *settings,
    ]
