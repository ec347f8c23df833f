"""Recipes by name."""

from ...configs.checks import check_name
from ...configs.train_schema import TrainConfig
from .recipe import Recipe


def build_recipe(config: TrainConfig) -> Recipe:
    return {"vae": _vae, "finetune": _finetune}[config.recipe](config)


def prepare_recipe(config: TrainConfig, device: str) -> None:
    """What is done once, before any process of the run starts."""
    if config.recipe == "finetune":
        import torch

        from .clips import encode_clips

        _check_arch(config)
        encode_clips(config.finetune, config.data, torch.device(device))


def _vae(config: TrainConfig) -> Recipe:
    from ...models.arch import VaeArch
    from .vae_recipe import VaeRecipe

    vae = config.vae
    arch = VaeArch(
        base_dim=vae.base_dim,
        z_dim=vae.z_dim,
        dim_mult=vae.dim_mult,
        num_res_blocks=vae.num_res_blocks,
        patch=None if vae.patch == 1 else vae.patch,
        space_stride=vae.space_stride,
    )
    return VaeRecipe(
        arch,
        seed=config.run.seed,
        clips=vae.clips,
        frames=vae.frames,
        crop=vae.crop,
        things=vae.things,
        edges=vae.edges,
        kl=vae.kl,
    )


def _finetune(config: TrainConfig) -> Recipe:
    from ...parallel.ulysses import sequence_group
    from .finetune_recipe import FinetuneRecipe

    return FinetuneRecipe(config, sequence_group(config.run.sequence_ranks))


def _check_arch(config: TrainConfig) -> None:
    """ValueError unless the checkpoint is there, whole, and of a kind that we can teach."""
    from ...models.arch import ARCHS
    from ...models.checkpoint import check_transformer
    from ...parallel.ulysses import check_heads

    finetune = config.finetune
    check_name("finetune.arch", finetune.arch, tuple(ARCHS), "the training")
    arch = ARCHS[finetune.arch]
    if arch.image == "channels" or arch.num_experts > 1:
        kind = "reads pictures" if arch.num_experts == 1 else "has two experts"
        raise ValueError(
            f"finetune.arch={finetune.arch} {kind}, which this recipe cannot teach yet; choose a "
            "text-to-video model of one transformer"
        )
    check_heads(arch.dit, config.run.sequence_ranks)
    reference, field = finetune.checkpoint, "finetune.checkpoint"
    check_transformer(reference, "transformer", arch.dit, finetune.arch, field)
