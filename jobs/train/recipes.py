"""Recipes by name."""

from ...configs.train_schema import TrainConfig
from .recipe import Recipe


def build_recipe(config: TrainConfig) -> Recipe:
    return {"vae": _vae}[config.recipe](config)


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
