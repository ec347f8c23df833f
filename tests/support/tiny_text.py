"""A tiny UMT5 and a tiny T5 tokenizer, written as checkpoints hold them. No downloads.

`write_tokenizer` and `write_text_encoder` fit together: every token is one the encoder knows.
"""

import json
from pathlib import Path

import torch

VOCAB_SIZE = 384  # of the encoder: covers the tokenizer below, and bytes
NUM_LAYERS = 2

_SPACE = "\u2581"  # how Unigram vocabularies write a blank
_WORDS = ("a", "cat", "dog", "walks", "runs", "on", "the", "grass", "red", "slowly")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"


def write_tokenizer(folder: Path) -> None:
    """A Unigram T5 tokenizer of whole words, with letters for the rest; EOS is appended."""
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (_SPACE, -4.0)]
    vocab += [(f"{_SPACE}{word}", -2.0 - i / 10) for i, word in enumerate(_WORDS)]
    vocab += [(letter, -6.0 - i / 10) for i, letter in enumerate(_LETTERS)]
    T5Tokenizer(vocab=vocab, extra_ids=0).save_pretrained(folder)


def write_published_tokenizer(folder: Path) -> None:
    """Files as UMT5's: <unk> is number 3, and the class that they name would have it be 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = [(name, 0.0) for name in ("<pad>", "</s>", "<s>", "<unk>")] + [(_SPACE, -4.0)]
    vocab += [(f"{_SPACE}{word}", -2.0 - i / 10) for i, word in enumerate(_WORDS)]
    vocab += [(letter, -6.0 - i / 10) for i, letter in enumerate(_LETTERS)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config))


def tiny_umt5(text_dim: int):
    """transformers' own UMT5EncoderModel, the same for the same width."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=VOCAB_SIZE,
        d_model=text_dim,
        d_kv=6,
        d_ff=20,
        num_layers=NUM_LAYERS,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model = UMT5EncoderModel(config).eval()
        for parameter in model.parameters():  # else the norms are all ones
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def write_text_encoder(folder: Path, text_dim: int) -> None:
    """The diffusers layout: text_encoder/config.json and text_encoder/model.safetensors."""
    tiny_umt5(text_dim).save_pretrained(folder)


def write_original_text_encoder(file: Path, text_dim: int) -> None:
    """The layout of Wan's models_t5_umt5-xxl-enc-bf16.pth, in float32."""
    source = tiny_umt5(text_dim).state_dict()
    tensors = {
        "token_embedding.weight": source["shared.weight"],
        "norm.weight": source["encoder.final_layer_norm.weight"],
    }
    inner = {
        "norm1": "layer.0.layer_norm",
        "norm2": "layer.1.layer_norm",
        "attn.q": "layer.0.SelfAttention.q",
        "attn.k": "layer.0.SelfAttention.k",
        "attn.v": "layer.0.SelfAttention.v",
        "attn.o": "layer.0.SelfAttention.o",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
        "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
        "ffn.fc1": "layer.1.DenseReluDense.wi_1",
        "ffn.fc2": "layer.1.DenseReluDense.wo",
    }
    for i in range(NUM_LAYERS):
        for theirs, ours in inner.items():
            tensors[f"blocks.{i}.{theirs}.weight"] = source[f"encoder.block.{i}.{ours}.weight"]
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, file)
