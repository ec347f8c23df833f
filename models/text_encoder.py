"""transformers' UMT5 and its tokenizer, from a checkpoint in either layout or from a seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..configs.errors import first_line
from .importing import importing
from .names import rename_t5
from .random_weights import fill_random
from .weights import Weights, arch_field, check_module, load_module

if TYPE_CHECKING:
    from transformers import UMT5Config, UMT5EncoderModel

RANDOM_SEED = 0  # of the encoder that needs no files


def load_tokenizer(path: Path | None, field: str = "model.checkpoint") -> Any:
    """From a folder; none: UTF-8 bytes, which needs no files. `field`, here and below, is whose
    value led to it.

    tokenizer.json is taken as it is: the T5Tokenizer that Wan's folder names would be built anew,
    and knows unknown characters by another number than UMT5 does.
    """
    with importing():
        from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast
    if path is None:
        return ByT5Tokenizer()
    kind = PreTrainedTokenizerFast if (path / "tokenizer.json").exists() else AutoTokenizer
    try:
        return kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # a corrupt tokenizer.json raises Exception itself
        raise ValueError(
            f"{field}: the tokenizer in {path} cannot be read ({first_line(error)}), so "
            "prompts cannot be encoded; download that folder again"
        ) from error


def load_encoder(
    path: Path | None,
    text_dim: int,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    field: str = "model.checkpoint",
) -> "UMT5EncoderModel":
    """From a diffusers folder or an original file; none: untrained weights, always the same."""
    encoder, weights = _open(path, text_dim, field)
    if weights is None:
        fill_random(encoder, RANDOM_SEED, device=device, dtype=dtype)
    else:
        load_module(
            encoder,
            weights,
            device=device,
            dtype=dtype,
            # What transformers does: outputs of `wo` pass 65504, float16's largest, but not
            # bfloat16's, and the sum they are added to is float32 from then on.
            keep_float32=lambda name: dtype == torch.float16 and name.endswith(".wo.weight"),
        )
    return encoder


def check_encoder(path: Path, text_dim: int, field: str = "model.checkpoint") -> None:
    """ValueError unless the files are whole and hold an encoder that fits; reads headers only."""
    encoder, weights = _open(path, text_dim, field)
    assert weights is not None
    check_module(encoder, weights)


def _open(
    path: Path | None, text_dim: int, field: str
) -> tuple["UMT5EncoderModel", Weights | None]:
    """The encoder on the meta device, and what is to fill it."""
    with importing():
        from transformers import UMT5EncoderModel
    weights = None if path is None else Weights(path, rename_t5, field)
    config = _config(path, weights, text_dim)
    if config.d_model != text_dim:
        raise ValueError(
            f"{field}: the text encoder in {path} makes {config.d_model} channels and "
            f"{arch_field(field)} reads {text_dim}: it belongs to another model; set "
            f"{arch_field(field)} to what the checkpoint holds"
        )
    with torch.device("meta"):
        encoder: UMT5EncoderModel = UMT5EncoderModel(config)
    encoder.train(False).requires_grad_(False)
    return encoder, weights


def _config(path: Path | None, weights: Weights | None, text_dim: int) -> "UMT5Config":
    from transformers import UMT5Config

    if path is None or weights is None:
        return UMT5Config(
            vocab_size=384,  # bytes and the special tokens of ByT5Tokenizer
            d_model=text_dim,
            d_kv=16,
            d_ff=2 * text_dim,
            num_layers=2,
            num_heads=2,
        )
    if path.is_dir():
        try:
            (path / "config.json").stat()  # transformers would take its defaults instead
            return UMT5Config.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{weights.field}: {path / 'config.json'} is not there or not readable, so the "
                f"size of the text encoder is unknown; download that folder again"
            ) from error
    return _config_of(weights)


def _config_of(weights: Weights) -> "UMT5Config":
    """Original files come without a config; the shapes say all but the constants of UMT5."""
    from transformers import UMT5Config

    layer = "encoder.block.0.layer"
    telling = (
        "shared.weight",
        f"{layer}.0.SelfAttention.q.weight",
        f"{layer}.0.SelfAttention.relative_attention_bias.weight",
        f"{layer}.1.DenseReluDense.wi_0.weight",
    )
    lost = [name for name in telling if len(weights.shapes.get(name, ())) != 2]
    if lost:
        raise ValueError(
            f"{weights.field}: {weights.path} is not Wan's UMT5 encoder: it has no {lost[0]}; "
            f"point at models_t5_umt5-xxl-enc-bf16.pth or at a folder in the diffusers layout"
        )
    (vocab_size, d_model), (inner, _), (buckets, num_heads), (d_ff, _) = (
        weights.shapes[name] for name in telling
    )
    layers = {name.split(".")[2] for name in weights.shapes if name.startswith("encoder.block.")}
    return UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=inner // num_heads,
        d_ff=d_ff,
        num_layers=len(layers),
        num_heads=num_heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )
