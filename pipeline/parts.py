"""The parts of a plan's model: checked together, loaded one by one when their turn comes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..configs.files import expand
from ..models.checkpoint import check_transformer, locate
from ..models.fingerprint import fingerprint, fingerprint_part
from ..models.image import fit_image
from ..models.image_encoder import (
    ImageSource,
    check_image_encoder,
    encode_images,
)
from ..models.lora import Adapted, Adapter, find_adapters
from ..models.shipped import PREFIX
from ..models.text import TextSource, encode_prompts
from ..models.text_encoder import check_encoder, load_tokenizer
from ..models.vae_build import random_vae
from ..models.vae_load import check_vae, check_vae_config, load_vae
from ..models.wan import WanDiT
from ..models.wan_load import load_dit
from .condition import Condition, encode_pictures
from .plan import DTYPES, Plan

_log = logging.getLogger("longreel")

RANDOM = "random"  # the value of model.checkpoint that means untrained weights

_EXPERTS = "transformer", "transformer_2"
_ADAPTERS = "lora", "lora_low"  # fields of `model`, by expert

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def check_parts(plan: Plan) -> None:
    """Every file there, whole, and of this model: headers are read, weights are not."""
    model, dit = plan.config.model, plan.arch.dit
    reference, field = _transformer(plan)
    if reference != RANDOM:
        for part in _EXPERTS[: plan.arch.num_experts]:
            weights = check_transformer(reference, part, dit, model.arch, field)
            Adapted(weights, _adapters(plan, part))
    else:
        for field in _ADAPTERS:
            if setting := getattr(model, field):
                raise ValueError(
                    f"model.{field}={setting} would be added to untrained weights; leave it out, "
                    "or set model.checkpoint to the model that it was trained on"
                )
    if model.checkpoint == RANDOM:
        return
    # all, before any is opened
    found = {part: locate(model.checkpoint, part) for part in _others(plan)}
    if model.checkpoint.startswith(PREFIX):
        # what is located there is what was packed: to build its modules, only to hold them against
        # it, would take the import of two large libraries, which no driver of Ray actors needs
        return check_vae_config(found["vae"], plan.arch.vae)
    check_vae(found["vae"], plan.arch.vae)
    check_encoder(found["text_encoder"], dit.text_dim)
    load_tokenizer(found["tokenizer"])
    if dit.image_dim is not None:
        check_image_encoder(_image_source(plan), dit.image_positions)


def _others(plan: Plan) -> list[str]:
    """The parts that a render reads of model.checkpoint besides the DiT."""
    images = ["image_encoder", "image_processor"] if plan.arch.dit.image_dim is not None else []
    return ["vae", "text_encoder", "tokenizer", *images]


def fingerprints(plan: Plan) -> dict[str, str]:
    """Each part, told apart by its content."""
    reference, field = _transformer(plan)
    names = _EXPERTS[: plan.arch.num_experts]
    found = {} if reference == RANDOM else {name: locate(reference, name, field) for name in names}
    found |= {
        f"{name} adapter {i}": adapter.path
        for name in names
        for i, adapter in enumerate(_adapters(plan, name))
    }
    known = {part: fingerprint(path) for part, path in found.items()}
    checkpoint = plan.config.model.checkpoint
    if checkpoint != RANDOM:
        others = _others(plan)
        known |= {part: fingerprint_part(locate(checkpoint, part)) for part in others}
    return known


def encode_texts(plan: Plan, prompts: Sequence[str]) -> Tensor:
    """One row of embeddings per prompt, on the plan's device."""
    model = plan.config.model
    source = TextSource(
        encoder=_locate(plan, "text_encoder"),
        tokenizer=_locate(plan, "tokenizer"),
        text_len=plan.arch.text_len,
        text_dim=plan.arch.dit.text_dim,
    )
    return encode_prompts(
        prompts,
        source,
        device=plan.device,
        dtype=DTYPES[model.dtype],
        cache=_text_cache(model.text_cache),
    )


def _text_cache(setting: str) -> Path | None:
    folder = expand(setting) if setting else None
    if folder and folder.parts[0] == "~":  # a container's user may have no home
        _log.warning(
            "model.text_cache=%s lies in a home folder, which this user has not, so prompts are "
            "not kept; set it to another folder",
            setting,
        )
        return None
    return folder


def load_plan_vae(plan: Plan) -> "AutoencoderKLWan":
    dtype, path = DTYPES[plan.config.model.vae_dtype], _locate(plan, "vae")
    if path is None:
        return random_vae(plan.arch.vae, seed=0, device=plan.device, dtype=dtype)
    return load_vae(path, plan.arch.vae, device=plan.device, dtype=dtype)


def encode_condition(plan: Plan, vae: "AutoencoderKLWan") -> Condition:
    """What the request's pictures become; the image encoder is gone again afterwards."""
    video = plan.config.video
    tokens = None if plan.arch.dit.image_dim is None else _encode_tokens(plan)
    first, *last = (fit_image(picture, video.height, video.width) for picture in plan.pictures)
    return encode_pictures(
        plan.arch,
        vae,
        plan.config.model.vae_tile,
        plan.latents_shape[1],
        first.to(plan.device),
        last[0].to(plan.device) if last else None,
        tokens,
    )


def _encode_tokens(plan: Plan) -> Tensor:
    dtype = DTYPES[plan.config.model.dtype]
    return encode_images(plan.pictures, _image_source(plan), device=plan.device, dtype=dtype)


def _image_source(plan: Plan) -> ImageSource:
    assert plan.arch.dit.image_dim is not None
    found = _locate(plan, "image_processor")
    return ImageSource(
        encoder=_locate(plan, "image_encoder"),
        # the original layout has none: pictures are prepared as its own code does
        processor=found if found and found.is_dir() else None,
        image_dim=plan.arch.dit.image_dim,
    )


def _locate(plan: Plan, part: str) -> Path | None:
    """Where a part is; none: its weights are random."""
    reference = plan.config.model.checkpoint
    return None if reference == RANDOM else locate(reference, part)


def _transformer(plan: Plan) -> tuple[str, str]:
    """Where the DiT is, and the field that says so."""
    model = plan.config.model
    if model.transformer:
        return model.transformer, "model.transformer"
    return model.checkpoint, "model.checkpoint"


def _adapters(plan: Plan, part: str) -> list[Adapter]:
    """What is added to a transformer."""
    field = _ADAPTERS[_EXPERTS.index(part)]
    return find_adapters(getattr(plan.config.model, field), f"model.{field}")


class Experts:
    """A slice of the DiT, or of both experts where blocks in flight need them at once.

    In a single window only one is held at a time: it never goes back to the first.
    """

    def __init__(self, plan: Plan, layers: range) -> None:
        self._plan = plan
        self._layers = layers
        self._keep = plan.policy != "whole"
        self._models: dict[int, WanDiT] = {}

    def load(self) -> None:
        """What will be needed, or the first of it, before it is."""
        for expert in range(self._plan.arch.num_experts if self._keep else 1):
            self.get(expert)

    def get(self, expert: int) -> WanDiT:
        """0: the model, or the high-noise expert; 1: the low-noise expert."""
        if expert not in self._models:
            if not self._keep:
                self._models.clear()  # before the other one takes its memory
            self._models[expert] = self._load(_EXPERTS[expert])
        return self._models[expert]

    def _load(self, part: str) -> WanDiT:
        plan = self._plan
        reference, field = _transformer(plan)
        return load_dit(
            None if reference == RANDOM else locate(reference, part, field),
            plan.arch.dit,
            device=plan.device,
            dtype=DTYPES[plan.config.model.dtype],
            layers=self._layers,
            with_embed=self._layers.start == 0,
            with_head=self._layers.stop == plan.arch.dit.num_layers,
            adapters=_adapters(plan, part),
        )
