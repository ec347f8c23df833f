"""Recipes by name."""

import math
import os
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from ...configs.checks import check_name
from ...configs.files import expand
from ...configs.train_schema import DataConfig, TrainConfig
from ...configs.train_small import VaeTraining
from .recipe import Recipe
from .store import make_folder

if TYPE_CHECKING:
    from ...models.arch import ModelArch, VaeArch
    from .latents import LatentClips


def build_recipe(config: TrainConfig) -> Recipe:
    return _RECIPES[config.recipe](config)


def device_type(config: TrainConfig) -> str:
    import torch

    if config.run.device != "auto":
        return config.run.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare_recipe(config: TrainConfig) -> None:
    """What is done once, before any process of the run starts."""
    import torch

    device = device_type(config)
    _check_compiler(config, device)
    if config.recipe == "vae":
        _vae_start(config)
    if config.recipe in ("dit", "live"):
        _clips(config)  # by one process, for all
    if config.recipe == "finetune":
        from .clips import encode_clips

        _check_arch(config)
        encode_clips(config.finetune, config.data, torch.device(device))
    if device == "cuda":
        torch.cuda.empty_cache()  # of the VAE: the first rank trains on this GPU


def _check_compiler(config: TrainConfig, device: str) -> None:
    """ValueError where torch is to compile for a CPU and would find nothing to do it with."""
    group = getattr(config, config.recipe)
    if not getattr(group, "compiled", False) or device != "cpu":
        return
    if not any(which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")):
        raise ValueError(
            f"{config.recipe}.compiled=true needs a C++ compiler, and there is none on the path; "
            "install g++, or set it to false, which learns the same more slowly"
        )


def _vae_arch(vae: VaeTraining) -> "VaeArch":
    from ...models.arch import VaeArch

    return VaeArch(
        base_dim=vae.base_dim,
        z_dim=vae.z_dim,
        dim_mult=vae.dim_mult,
        num_res_blocks=vae.num_res_blocks,
        patch=None if vae.patch == 1 else vae.patch,
        space_stride=vae.space_stride,
    )


def _vae_start(config: TrainConfig) -> Path | None:
    """ValueError unless it is there, whole, and this VAE."""
    from ...models.vae_load import check_vae

    if not config.vae.start:
        return None
    start = _folder("vae.start", config.vae.start, "shapes-vae")
    check_vae(start, _vae_arch(config.vae), "vae.start")
    return start


def _vae(config: TrainConfig) -> Recipe:
    from .vae_recipe import Phase, VaeRecipe

    vae = config.vae
    columns = (vae.until, vae.clips, vae.frames, vae.long_frames, vae.crop)
    return VaeRecipe(
        _vae_arch(vae),
        seed=config.run.seed,
        phases=[
            Phase(until=until, clips=clips, frames=frames, long_frames=long, crop=crop)
            for until, clips, frames, long, crop in zip(*columns, strict=True)
        ],
        mix=vae,
        start=_vae_start(config),
    )


def _dit(config: TrainConfig) -> Recipe:
    from .dit_recipe import DitRecipe

    arch, folder = _source(config)
    clips, vae = _clips(config)
    start, seed = _dit_start(config), config.run.seed
    return DitRecipe(
        arch,
        clips,
        seed=seed,
        mix=config.dit,
        vae=vae,
        vae_folder=folder,
        start=start,
        workers=config.run.workers,
    )


def _dit_start(config: TrainConfig) -> Path | None:
    dit = config.dit
    return _whole_model("dit.start", dit.start, dit.arch) if dit.start else None


def _whole_model(field: str, value: str, arch: str) -> Path:
    """ValueError unless the DiT is there, whole, and of this kind, and so are its words."""
    from ...models.checkpoint import check_transformer

    folder, dit = _folder(field, value, "shapes"), _arch(field, arch).dit
    check_transformer(str(folder), "transformer", dit, arch, field)
    _check_words(str(folder), dit.text_dim, field)
    return folder


def _check_words(reference: str, text_dim: int, field: str) -> None:
    """ValueError unless the text encoder and its tokenizer are there, whole, and fit."""
    from ...models.checkpoint import locate
    from ...models.text_encoder import check_encoder, load_tokenizer

    encoder, tokenizer = (locate(reference, it, field) for it in ("text_encoder", "tokenizer"))
    check_encoder(encoder, text_dim, field)
    load_tokenizer(tokenizer, field)


def _live(config: TrainConfig) -> Recipe:
    from .live_recipe import LiveRecipe

    arch, start = _source(config)
    clips, vae = _clips(config)
    return LiveRecipe(arch, start, clips, seed=config.run.seed, mix=config.live, vae=vae)


def _source(config: TrainConfig) -> tuple["ModelArch", Path]:
    """What is learnt, and the folder of the VAE whose latents it learns on."""
    dit, live = config.dit, config.live
    if config.recipe == "dit":
        _dit_start(config)
        if dit.pattern:
            from .patterns import DRAWN

            check_name("dit.pattern", dit.pattern, tuple(DRAWN), "the training")
        return _arch("dit.arch", dit.arch), _folder("dit.vae", dit.vae, "shapes-vae")
    arch = _arch("live.arch", live.arch)
    if not arch.causal_latents:
        raise ValueError(
            f"live.arch={live.arch} is no causal model, so it has no student of chunks; set "
            "it to shapes-live"
        )
    if arch.causal_latents * live.chunks > live.clip_latents:
        raise ValueError(
            f"live.chunks={live.chunks} of {arch.causal_latents} latents are more than "
            f"live.clip_latents={live.clip_latents}, so no clip holds such a window; make chunks "
            f"{live.clip_latents // arch.causal_latents} at most, or clips longer"
        )
    return arch, _whole_model("live.start", live.start, live.arch)


def _clips(config: TrainConfig) -> tuple["LatentClips", Any]:
    """Latents of the world, made unless they are there, and the VAE that makes them."""
    import torch

    from ...models.vae_load import load_vae
    from .latents import load_or_encode
    from .vae_recipe import channels_last

    arch, folder = _source(config)
    recipe = config.recipe
    group, field = (config.dit, "dit.vae") if recipe == "dit" else (config.live, "live.start")
    device = torch.device(device_type(config))
    vae = load_vae(folder, arch.vae, device=device, dtype=torch.float32, field=field)
    channels_last(vae)
    cache, workers = expand(group.cache), config.run.workers
    make_folder(f"{recipe}.cache", cache, "encoded clips have")
    clips = load_or_encode(cache, vae, group.clips, group.clip_latents, group.compiled, workers)
    return clips, vae


def _arch(field: str, name: str) -> "ModelArch":
    from ...models.arch import ARCHS

    check_name(field, name, tuple(ARCHS), "the training")
    return ARCHS[name]


def _folder(field: str, value: str, first: str) -> Path:
    folder = expand(value)
    if not value.strip() or not os.path.isdir(folder):  # Path.is_dir raises for too long a name
        raise ValueError(
            f"{field}={value} is no folder, so there is nothing to go on from; set it to the "
            f"model/ that another run left: longreel train {first} leaves one"
        )
    return folder


def _finetune(config: TrainConfig) -> Recipe:
    from ...parallel.ulysses import sequence_group
    from .finetune_recipe import FinetuneRecipe

    return FinetuneRecipe(config, sequence_group(config.run.sequence_ranks))


def _check_arch(config: TrainConfig) -> None:
    """ValueError unless the checkpoint is there, whole, and of a kind that we can teach."""
    from ...models.arch import ARCHS
    from ...models.checkpoint import check_transformer, locate
    from ...models.vae_load import check_vae
    from ...parallel.ulysses import check_heads, check_tokens

    finetune = config.finetune
    check_name("finetune.arch", finetune.arch, tuple(ARCHS), "the training")
    arch = ARCHS[finetune.arch]
    if arch.image == "channels" or arch.num_experts > 1:
        kind = "reads pictures" if arch.num_experts == 1 else "has two experts"
        raise ValueError(
            f"finetune.arch={finetune.arch} {kind}, which this recipe cannot teach yet; choose a "
            "text-to-video model of one transformer"
        )
    if arch.causal_latents or arch.dit.fps_embedding:
        kind = "sees no later latents" if arch.causal_latents else "is told the frame rate"
        raise ValueError(
            f"finetune.arch={finetune.arch} {kind}, and this recipe would teach it otherwise than "
            "it renders; choose a model that sees whole windows, such as wan2.1-t2v-1.3b"
        )
    most = arch.dit.max_position
    for name, patch in (("height", arch.dit.patch[1]), ("width", arch.dit.patch[2])):
        value, whole = getattr(config.data, name), arch.vae.space_stride * patch
        if value % whole or value > most * whole:
            raise ValueError(
                f"data.{name}={value} cannot be cut into at most {most} whole tokens of {whole} "
                f"pixels, as finetune.arch={finetune.arch} has them; set it to a multiple of "
                f"{whole} up to {most * whole}"
            )
    if config.data.frames > 1 + (most - 1) * arch.vae.time_stride:
        raise ValueError(
            f"data.frames={config.data.frames} makes more latents than the {most} positions of "
            f"finetune.arch={finetune.arch}; set it to at most "
            f"{1 + (most - 1) * arch.vae.time_stride}"
        )
    check_heads(arch.dit, config.run.sequence_ranks)
    check_tokens(_tokens(arch, config.data), config.run.sequence_ranks)
    reference, field = finetune.checkpoint, "finetune.checkpoint"
    check_transformer(reference, "transformer", arch.dit, finetune.arch, field)
    check_vae(locate(reference, "vae", field), arch.vae, field)
    _check_words(reference, arch.dit.text_dim, field)


def _tokens(arch: "ModelArch", data: DataConfig) -> int:
    """Of a clip."""
    latents = 1 + (data.frames - 1) // arch.vae.time_stride
    cells = (latents, data.height // arch.vae.space_stride, data.width // arch.vae.space_stride)
    return math.prod(side // patch for side, patch in zip(cells, arch.dit.patch, strict=True))


_RECIPES = {"vae": _vae, "dit": _dit, "live": _live, "finetune": _finetune}
