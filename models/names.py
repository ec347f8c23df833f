"""Our names for the tensors of the published files: what `Weights` takes as `rename`.

Each function passes names that are ours already (diffusers', transformers') through, so a file
needs no telling in which layout it is: no original name of a tensor is also one of ours.
"""

from collections.abc import Sequence

from .weights import View

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("module.", "model.", "diffusion_model.")

_ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}
_DIT_LAYER = {
    **{f"self_attn.{theirs}": f"attn1.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"cross_attn.{theirs}": f"attn2.{ours}" for theirs, ours in _ATTENTION.items()},
    "norm3": "norm2",  # the one before cross-attention; their own norm2 has no weight
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_DIT = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "fps_projection.0": "fps_projection.net.0.proj",
    "fps_projection.2": "fps_projection.net.2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}

_DIT_LAYER_BACK = {ours: theirs for theirs, ours in _DIT_LAYER.items()}
_DIT_BACK = {ours: theirs for theirs, ours in _DIT.items()}

_T5_LAYER = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_T5 = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}

_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP = {
    "visual.patch_embedding": "embeddings.patch_embedding",
    "visual.pre_norm": "pre_layrnorm",
    "visual.post_norm": "post_layernorm",
}
_CLIP_UNREAD = (
    *("visual.head", "textual.", "log_scale"),
    *("visual_projection.", "text_model.", "text_projection.", "logit_scale"),
    "embeddings.position_ids",  # a count from 0, which old files keep
)


def rename_transformer(name: str) -> str | Sequence[View]:
    """A DiT of Wan's or SkyReels' own files, or one wrapped for training as Self-Forcing's."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    if ".norm_added_q." in name:
        return ()  # in some diffusers files of image models; nothing has ever read it
    return _in_layer(name, "blocks.", "blocks.", _DIT_LAYER) or _translate(name, _DIT)


def original_module(module: str) -> str:
    """A DiT's module as Wan's own files name it."""
    layer = _in_layer(f"{module}.", "blocks.", "blocks.", _DIT_LAYER_BACK)
    return (layer or _translate(f"{module}.", _DIT_BACK)).removesuffix(".")


def rename_t5(name: str) -> str:
    """Wan's encoder of prompts to the names of transformers' UMT5EncoderModel."""
    return _in_layer(name, "blocks.", "encoder.block.", _T5_LAYER) or _translate(name, _T5)


def rename_clip(name: str) -> str | Sequence[View]:
    """Wan's encoder of images to transformers' CLIPVisionModel; its text half is left out.

    Names start at `embeddings.`, `encoder.`: the `vision_model.` of older files is taken off.
    """
    name = name.removeprefix("vision_model.")
    if name.startswith(_CLIP_UNREAD):
        return ()
    if name == "visual.cls_embedding":
        return (View(name="embeddings.class_embedding", drop=2),)
    if name == "visual.pos_embedding":
        return (View(name="embeddings.position_embedding.weight", drop=1),)
    layer, found, leaf = name.partition(".attn.to_qkv.")
    if found:
        index = layer.removeprefix("visual.transformer.")
        targets = [f"encoder.layers.{index}.self_attn.{x}_proj.{leaf}" for x in "qkv"]
        return [View(name=target, part=i, parts=3) for i, target in enumerate(targets)]
    layers = _in_layer(name, "visual.transformer.", "encoder.layers.", _CLIP_LAYER)
    return layers or _translate(name, _CLIP)


def _in_layer(name: str, theirs: str, ours: str, table: dict[str, str]) -> str | None:
    """`theirs` 7. rest to `ours` 7. translated rest; none for what is in no layer."""
    if not name.startswith(theirs):
        return None
    index, _, rest = name.removeprefix(theirs).partition(".")
    return f"{ours}{index}.{_translate(rest, table)}"


def _translate(name: str, table: dict[str, str]) -> str:
    """By the table's entry for the parameter, else for the module it is in, else as it is."""
    if name in table:
        return table[name]
    module, dot, leaf = name.rpartition(".")
    return f"{table.get(module, module)}{dot}{leaf}"
