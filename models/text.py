"""Prompts to the text embeddings that a DiT attends to, from a cache on disk where it has them.

N prompts, S tokens, D channels.
"""

import hashlib
import html
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ftfy import fix_text
from torch import Tensor

from .text_cache import Embedding, TextCache, identity
from .text_encoder import RANDOM_SEED, load_encoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

_log = logging.getLogger("longreel")

TEXT_FORMAT = 4  # of cached embeddings; a change to what this file computes must raise it
_WORDS_SHOWN = 8
LEAVE_OUT_UNKNOWN = "leave_out_unknown"  # in tokenizer_config.json


@dataclass(frozen=True)
class TextSource:
    """Where the encoder comes from, and what the DiT reads from it."""

    encoder: Path | None  # diffusers folder or original .pth file; none: untrained weights
    tokenizer: Path | None  # folder; none: bytes
    text_len: int
    text_dim: int
    field: str = "model.checkpoint"  # the user's, whose value led to them


def clean_prompt(prompt: str, field: str = "prompt") -> str:
    """What is encoded: Unicode repaired, HTML entities resolved, also twice escaped, and runs of
    blanks one space, as Wan and diffusers have it. ValueError names `field` if it is no text.

    The tokenizer makes nothing alike by itself: Wan's own negative prompt has commas of Chinese
    width, which the models know as plain ones.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"{field}={prompt!r} is no text; describe the video in a sentence")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field}={prompt!r} has bytes at position {error.start} that are not UTF-8, so it "
            f"cannot be encoded; set the terminal or the file it comes from to UTF-8"
        ) from error
    if "\0" in prompt:
        raise ValueError(
            f"{field}={prompt[:60]!r} holds a NUL character, at which the metadata of a video file "
            "would end; remove it"
        )
    text = html.unescape(html.unescape(fix_text(prompt))).strip()
    # Unicode's blanks; Python's \s also has the separators 0x1c to 0x1f, diffusers' has not
    return re.sub(r"[^\S\x1c-\x1f]+", " ", text).strip()


def encode_prompts(
    prompts: Sequence[str],
    source: TextSource,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    cache: Path | None,
) -> Tensor:
    """(N, S, D) with zeros past each prompt's end, as Wan was trained."""
    each = embed_prompts(prompts, source, device=device, dtype=dtype, cache=cache)
    embeddings_NSD = torch.zeros(len(each), source.text_len, source.text_dim, dtype=dtype)
    for padded_SD, embedding in zip(embeddings_NSD, each, strict=True):
        padded_SD[: len(embedding.rows_SD)] = embedding.rows_SD
    return embeddings_NSD.to(device)


def embed_prompts(
    prompts: Sequence[str],
    source: TextSource,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    cache: Path | None,
) -> list[Embedding]:
    """Each without zeros past its end, on the CPU.

    Every prompt goes through the encoder alone, so its embedding does not depend on the others. The
    encoder is loaded only for prompts that are not in `cache`, and released before this returns.
    """
    for path in (source.encoder, source.tokenizer):
        if path is not None and not path.exists():
            raise ValueError(
                f"{source.field}: {path} does not exist, so prompts cannot be encoded; download "
                f"that part of the checkpoint too"
            )
    device = torch.device(device)
    texts = [clean_prompt(prompt) for prompt in prompts]
    unique = list(dict.fromkeys(texts))
    if cache is None:
        done = _encode(unique, source, device, dtype)
    else:
        done = _encode_cached(unique, source, device, dtype, TextCache(cache))
    for embedding in done.values():
        _warn_of_lost_words(embedding, source.text_len)
    return [done[text] for text in texts]


def _encode_cached(
    texts: Sequence[str],
    source: TextSource,
    device: torch.device,
    dtype: torch.dtype,
    cache: TextCache,
) -> dict[str, Embedding]:
    keys = _keys(texts, source, device, dtype)
    found = {text: hit for text in texts if (hit := cache.get(keys[text])) is not None}
    absent = [text for text in texts if text not in found]
    if not absent:
        return found
    made = _encode(absent, source, device, dtype)
    for text, embedding in made.items():
        cache.put(keys[text], embedding)
    return found | made


def _keys(
    texts: Sequence[str], source: TextSource, device: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """The name under which each prompt's embedding is cached: a hash of all that it depends on."""
    origin = [
        TEXT_FORMAT,
        f"seed {RANDOM_SEED}" if source.encoder is None else identity(source.encoder),
        "bytes" if source.tokenizer is None else identity(source.tokenizer),
        source.text_len,
        source.text_dim,
        str(dtype),
        device.type,  # a CPU's embeddings differ from a GPU's in the last bits
    ]
    return {
        text: hashlib.sha256(json.dumps([*origin, text]).encode()).hexdigest() for text in texts
    }


def _encode(
    texts: Sequence[str], source: TextSource, device: torch.device, dtype: torch.dtype
) -> dict[str, Embedding]:
    """Load, use and release the encoder."""
    try:
        return _encode_all(texts, source, device, dtype)
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # or other processes on this GPU would lack 11 GB


def _encode_all(
    texts: Sequence[str], source: TextSource, device: torch.device, dtype: torch.dtype
) -> dict[str, Embedding]:
    field = source.field
    tokenizer = load_tokenizer(source.tokenizer, field)
    encoder = load_encoder(source.encoder, source.text_dim, device=device, dtype=dtype, field=field)
    return {text: _encode_one(text, source, encoder, tokenizer, dtype) for text in texts}


@torch.no_grad()
def _encode_one(
    text: str, source: TextSource, encoder: "UMT5EncoderModel", tokenizer: Any, dtype: torch.dtype
) -> Embedding:
    text, unknown_words = _known(tokenizer, text)
    batch = tokenizer(
        [text],
        padding="max_length",
        max_length=source.text_len,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    largest = int(batch.input_ids.max())
    if largest >= encoder.config.vocab_size:
        raise ValueError(
            f"{source.field}: the tokenizer ({source.tokenizer or 'bytes'}) gives token "
            f"{largest} and the text encoder in {source.encoder} knows "
            f"{encoder.config.vocab_size}: they belong to different models; use one "
            f"checkpoint for both"
        )
    inputs = batch.to(encoder.device)
    hidden_SD = encoder(inputs.input_ids, inputs.attention_mask).last_hidden_state[0]
    rows_SD = hidden_SD[: int(inputs.attention_mask.sum())].to("cpu", dtype, copy=True)
    if not rows_SD.isfinite().all():
        raise ValueError(
            f"model.dtype={str(dtype).removeprefix('torch.')} makes the embedding of prompt "
            f"{text[:60]!r} infinite or not a number, which would blacken every frame; set "
            f"model.dtype=bfloat16 or float32"
        )
    return Embedding(rows_SD, *_dropped(tokenizer, text, source.text_len), unknown_words)


def _known(tokenizer: Any, text: str) -> tuple[str, str]:
    """The prompt without the words a tokenizer of few words does not know, and those words.

    Only a tokenizer that asks for it: Wan's has a piece for everything, or an unknown one that the
    model saw in training.
    """
    if not tokenizer.init_kwargs.get(LEAVE_OUT_UNKNOWN):
        return text, ""
    batch = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    spans = zip(batch.input_ids, batch.offset_mapping, strict=True)
    lost = [span for token, span in spans if token == tokenizer.unk_token_id]
    known = text
    for start, stop in reversed(lost):
        known = known[:start] + known[stop:]
    return clean_prompt(known), ", ".join(dict.fromkeys(text[a:b] for a, b in lost))


def _dropped(tokenizer: Any, text: str, text_len: int) -> tuple[int, str]:
    """How many tokens of the prompt do not fit, and the first words of them."""
    ids = tokenizer(text, verbose=False).input_ids
    if len(ids) <= text_len:
        return 0, ""
    rest = tokenizer.decode(ids[text_len - 1 : -1], skip_special_tokens=True).split()
    return len(ids) - text_len, " ".join(rest[:_WORDS_SHOWN])


def _warn_of_lost_words(embedding: Embedding, text_len: int) -> None:
    if embedding.unknown_words:
        _log.warning(
            "the model was never shown these words of the prompt, so they are ignored: %s; use "
            "words it knows (see docs/shapes.md)",
            embedding.unknown_words,
        )
    if embedding.dropped:
        _log.warning(
            "the prompt has %d tokens more than the %d that the model reads; dropped from: %r; "
            "shorten it, or put what matters first",
            embedding.dropped,
            text_len,
            embedding.dropped_words,
        )
