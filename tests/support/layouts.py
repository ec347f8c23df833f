"""Tiny checkpoints on disk in the layouts that models are published in."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# diffusers' names to the authors', by text: the opposite way to the package's tables
_TO_ORIGINAL = [
    (".norm2.", ".norm3."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".norm_added_k.", ".norm_k_img."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm3.", "img_emb.proj.4."),  # norm2 until the first line
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("fps_projection.net.0.proj.", "fps_projection.0."),
    ("fps_projection.net.2.", "fps_projection.2."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    ("proj_out.", "head.head."),
]


def original_name(name: str) -> str:
    if name == "scale_shift_table":
        return "head.modulation"
    for ours, theirs in _TO_ORIGINAL:
        name = name.replace(ours, theirs)
    return name.replace(".scale_shift_table", ".modulation")


def write_diffusers_transformer(
    folder: Path, model: torch.nn.Module, *, shards: int = 1, config: bool = True
) -> None:
    """Into the `transformer` folder itself; `shards` above 1: about as many, with an index."""
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=total // shards if shards > 1 else 2 * total)
    assert (shards > 1) == any(folder.glob("*.index.json"))
    if not config:
        (folder / "config.json").unlink()


def write_original_transformer(
    path: Path, model: torch.nn.Module, *, suffix: str = "", shards: int = 1, prefix: str = ""
) -> None:
    """A diffusers model in the authors' names: one file, or a folder with config.json."""
    state = {prefix + original_name(n): t.contiguous() for n, t in model.state_dict().items()}
    if path.suffix in (".safetensors", ".pth", ".pt"):
        return save_state(path, state)
    suffix = suffix or ".safetensors"
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(original_config(model)))
    stem = "diffusion_pytorch_model"
    if shards == 1:
        return save_state(path / f"{stem}{suffix}", state)
    names = list(state)
    for i in range(shards):
        part = {name: state[name] for name in names[i::shards]}
        save_state(path / f"{stem}-{i + 1:05}-of-{shards:05}{suffix}", part)


def original_config(model: torch.nn.Module) -> dict:
    theirs = model.config
    kind = "t2v" if theirs.image_dim is None else "flf2v" if theirs.pos_embed_seq_len else "i2v"
    config = {
        "_class_name": "WanModel",
        "model_type": kind,
        "dim": theirs.num_attention_heads * theirs.attention_head_dim,
        "num_heads": theirs.num_attention_heads,
        "num_layers": theirs.num_layers,
        "ffn_dim": theirs.ffn_dim,
        "in_dim": theirs.in_channels,
        "out_dim": theirs.out_channels,
        "text_dim": theirs.text_dim,
        "freq_dim": theirs.freq_dim,
        "eps": theirs.eps,
        "text_len": 512,
    }
    injects = theirs.get("inject_sample_info")
    return config if injects is None else config | {"inject_sample_info": injects}


def save_state(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
