"""Tensors of the published layouts come out under our names, with diffusers as the judge."""

import re
from pathlib import Path

import pytest
import torch
from layouts import (
    original_name,
    save_state,
    write_diffusers_transformer,
    write_original_transformer,
)
from tiny_wan import FLF2V, I2V, SKYREELS, T2V, diffusers_model
from torch import Tensor

from longreel.models.arch import WanArch
from longreel.models.names import rename_clip, rename_t5, rename_transformer
from longreel.models.weights import Weights, load_module

MODELS = pytest.mark.parametrize(
    ("arch", "skyreels"),
    [(T2V, False), (I2V, False), (FLF2V, False), (SKYREELS, True)],
    ids=["t2v", "i2v", "flf2v", "skyreels"],
)


def assert_holds(weights: Weights, state: dict[str, Tensor]) -> None:
    assert set(weights.shapes) == set(state)
    for name, tensor in state.items():
        assert weights.shapes[name] == tuple(tensor.shape), name
        assert torch.equal(weights.read(name), tensor), name


@MODELS
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("shards", [1, 3])
def test_both_layouts_give_the_same_tensors_name_by_name(
    tmp_path: Path, arch: WanArch, skyreels: bool, suffix: str, shards: int
) -> None:
    model = diffusers_model(arch, skyreels=skyreels)
    write_diffusers_transformer(tmp_path / "diffusers", model, shards=shards)
    write_original_transformer(tmp_path / "original", model, suffix=suffix, shards=shards)
    for layout in ("diffusers", "original"):
        weights = Weights(tmp_path / layout, rename_transformer)
        assert_holds(weights, model.state_dict())


@MODELS
def test_original_names_mean_what_diffusers_own_converter_says(
    arch: WanArch, skyreels: bool
) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    # the converter does not know these two; the layouts test has them
    unknown = ("fps_projection", "img_emb.emb_pos")
    ours = diffusers_model(arch, skyreels=skyreels).state_dict()
    names = [name for name in map(original_name, ours) if not name.startswith(unknown)]
    converted = convert_wan_transformer_to_diffusers(
        {name: torch.tensor(i) for i, name in enumerate(names)}
    )
    assert {name: int(index) for name, index in converted.items()} == {
        rename_transformer(name): i for i, name in enumerate(names)
    }


@pytest.mark.parametrize(
    "prefix", ["model.", "model.diffusion_model.", "module.", "model._fsdp_wrapped_module."]
)
def test_prefixes_of_training_programs_are_taken_off(tmp_path: Path, prefix: str) -> None:
    model = diffusers_model(I2V)
    write_original_transformer(tmp_path / "model.pt", model, prefix=prefix)
    assert_holds(Weights(tmp_path / "model.pt", rename_transformer), model.state_dict())


def test_the_norm_that_diffusers_ignores_is_ignored(tmp_path: Path) -> None:
    model = diffusers_model(I2V)
    extra = {"blocks.0.attn2.norm_added_q.weight": torch.ones(40)}
    save_state(tmp_path / "m.safetensors", model.state_dict() | extra)
    assert_holds(Weights(tmp_path / "m.safetensors", rename_transformer), model.state_dict())


def test_a_tensor_in_both_layouts_at_once_is_refused(tmp_path: Path) -> None:
    both = {"blocks.0.norm2.bias": torch.zeros(2), "blocks.0.norm3.bias": torch.ones(2)}
    save_state(tmp_path / "m.pth", both)
    with pytest.raises(
        ValueError, match=r"has blocks\.0\.norm2\.bias twice .*norm3\.bias in m\.pth"
    ):
        Weights(tmp_path / "m.pth", rename_transformer)


T5_TO_ORIGINAL = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
    "encoder.block": "blocks",
}


@pytest.mark.parametrize("original", [True, False], ids=["original", "transformers"])
def test_the_text_encoder_fills_umt5_from_either_layout(tmp_path: Path, original: bool) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=24, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=2)
    truth = UMT5EncoderModel(config).state_dict()
    if original:
        named = {n: t for n, t in truth.items() if n != "encoder.embed_tokens.weight"}
        for ours, theirs in T5_TO_ORIGINAL.items():
            named = {n.replace(ours, theirs): t for n, t in named.items()}
        assert {"blocks.1.ffn.gate.0.weight", "blocks.0.attn.q.weight"} < set(named)
        save_state(tmp_path / "t5.pth", named)
    else:
        save_state(tmp_path / "t5.pth", truth)
    with torch.device("meta"):
        encoder = UMT5EncoderModel(config)
    weights = Weights(tmp_path / "t5.pth", rename_t5)
    load_module(encoder, weights, device="cpu", dtype=torch.float32)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    loaded = encoder.state_dict()
    assert loaded.keys() == truth.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in truth.items())


def original_clip(truth: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to those of open_clip's visual tower, as Wan publishes it."""
    swaps = [
        (r"^embeddings\.patch", "patch"),
        (r"^pre_layrnorm", "pre_norm"),
        (r"^post_layernorm", "post_norm"),
        (r"^encoder\.layers", "transformer"),
        (r"\.layer_norm", ".norm"),
        (r"\.self_attn\.out_proj", ".attn.proj"),
        (r"\.fc1", ".0"),
        (r"\.fc2", ".2"),
    ]
    named = {
        "cls_embedding": truth["embeddings.class_embedding"][None, None],
        "pos_embedding": truth["embeddings.position_embedding.weight"][None],
        "head": torch.randn(8, 6),
    }
    for name, tensor in truth.items():
        if ".q_proj." in name:
            layer, leaf = name.split(".self_attn.q_proj.")
            parts = [truth[f"{layer}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            index = layer.rpartition(".")[2]
            named[f"transformer.{index}.attn.to_qkv.{leaf}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.|class_emb|position_emb", name):
            for ours, theirs in swaps:
                name = re.sub(ours, theirs, name)
            named[name] = tensor
    text = {"textual.token_embedding.weight": torch.randn(3, 4), "log_scale": torch.zeros([])}
    return {f"visual.{name}": tensor for name, tensor in named.items()} | text


@pytest.mark.parametrize("layout", ["original", "vision_model.", ""])
def test_the_image_encoder_fills_clip_from_either_layout(tmp_path: Path, layout: str) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    whole = CLIPVisionModel(config)
    tower = getattr(whole, "vision_model", whole)  # some releases wrap it
    truth = {name: torch.randn_like(tensor) for name, tensor in tower.state_dict().items()}
    if layout == "original":
        named = original_clip(truth)
        assert named["visual.transformer.1.attn.to_qkv.weight"].shape == (24, 8)
    else:
        named = {layout + name: tensor for name, tensor in truth.items()}
        named[f"{layout}embeddings.position_ids"] = torch.arange(5)[None]
    save_state(tmp_path / "clip.pth", named)
    weights = Weights(tmp_path / "clip.pth", rename_clip)
    assert_holds(weights, truth)
    load_module(tower.to("meta"), weights, device="cpu", dtype=torch.float32)
    assert all(torch.equal(tower.state_dict()[name], tensor) for name, tensor in truth.items())
