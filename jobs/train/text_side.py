"""The small models' text encoder: a tokenizer of the world's words, and a two-layer UMT5.

N prompts, S tokens, D channels.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...models.text import LEAVE_OUT_UNKNOWN, clean_prompt

_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer(words: Sequence[str]) -> Any:
    """Whole words; those it does not know are left out of a prompt, by its own wish."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate([_PAD, _END, _UNKNOWN, *words])}
    inner = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, ids[_END])]
    )
    special = {"pad_token": _PAD, "eos_token": _END, "unk_token": _UNKNOWN}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **{LEAVE_OUT_UNKNOWN: True})


class TextSide(nn.Module):
    """Prompts to what the DiT reads: zeros past each prompt's end."""

    def __init__(self, words: Sequence[str], *, text_len: int, text_dim: int) -> None:
        super().__init__()
        from transformers import UMT5Config, UMT5EncoderModel

        self.tokenizer = build_tokenizer(words)
        self.text_len = text_len
        config = UMT5Config(
            vocab_size=len(self.tokenizer),
            d_model=text_dim,
            d_kv=text_dim // 4,
            d_ff=2 * text_dim,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
        self.encoder: Any = UMT5EncoderModel(config)

    def forward(self, ids_NS: Tensor, mask_NS: Tensor) -> Tensor:
        hidden_NSD: Tensor = self.encoder(ids_NS, mask_NS).last_hidden_state
        return hidden_NSD * mask_NS[..., None]

    def tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, both (N, text_len)."""
        batch = self.tokenizer(
            [clean_prompt(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.text_len,
            truncation=True,
            return_tensors="pt",
        )
        return batch.input_ids, self.mask(batch.input_ids)

    def mask(self, ids_NS: Tensor) -> Tensor:
        """1 where there is a word or an end."""
        words_NS: Tensor = ids_NS != self.tokenizer.pad_token_id
        return words_NS.long()

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        device = self.encoder.device
        embedded_NSD: Tensor = self(*(rows.to(device) for rows in self.tokens(prompts)))
        return embedded_NSD

    def export(self, folder: Path) -> None:
        """As the diffusers layout has them: text_encoder/ and tokenizer/."""
        small = copy.deepcopy(self.encoder).to(torch.bfloat16)  # as the transformer's file
        with _without_bar():  # for a file of a moment
            small.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")


@contextmanager
def _without_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
