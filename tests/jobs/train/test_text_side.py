"""The small text encoder is read back by the code that reads Wan's, and says what it ignores."""

import logging
import re

import pytest
import torch

from longreel.jobs.train.text_side import TextSide
from longreel.jobs.world.captions import caption, vocabulary
from longreel.jobs.world.scene import random_scene
from longreel.models.text import TextSource, encode_prompts

LEN, DIM = 48, 16


@pytest.fixture(scope="module")
def side():
    torch.manual_seed(0)
    return TextSide(vocabulary(), text_len=LEN, text_dim=DIM)


@pytest.fixture(scope="module")
def source(side, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    side.export(folder)
    parts = {"encoder": folder / "text_encoder", "tokenizer": folder / "tokenizer"}
    return TextSource(**parts, text_len=LEN, text_dim=DIM)


def encode(source, prompts, cache=None):
    return encode_prompts(prompts, source, device="cpu", dtype=torch.float32, cache=cache)


def test_every_caption_is_of_known_words_and_fits(side):
    for seed in range(300):
        ids, mask = side.tokens([caption(random_scene(seed), seed)])
        assert side.tokenizer.unk_token_id not in ids
        assert mask.sum() < LEN


def test_what_training_embeds_is_what_a_render_reads(side, source):
    prompts = ["a red circle drifts to the left over a black background", "", "Two Blue squares"]
    rendered = torch.cat([encode(source, [prompt]) for prompt in prompts])
    side.encoder.to(torch.bfloat16).float()  # as the weights are in the file
    trained = torch.cat([side.embed([prompt]) for prompt in prompts])
    assert torch.equal(rendered, trained)
    assert rendered.abs().max() > 0.1


def test_unknown_words_are_left_out_and_named_also_from_the_cache(source, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "longreel"):
            rows = encode(source, ["a dancing red zebra-like circle"], tmp_path)
        assert torch.equal(rows, encode(source, ["a red - circle".replace(" -", "")]))
        assert len(caplog.records) == 1
        assert re.search("ignored: dancing, zebra, -, like", caplog.text)


def test_the_tokenizer_of_others_leaves_nothing_out(side, source, caplog):
    side.tokenizer.init_kwargs["leave_out_unknown"] = False
    try:
        side.tokenizer.save_pretrained(source.tokenizer)
        with caplog.at_level(logging.WARNING, "longreel"):
            rows = encode(source, ["a dancing circle"])
        assert not torch.equal(rows, encode(source, ["a circle"]))
        assert not caplog.records
    finally:
        side.tokenizer.init_kwargs["leave_out_unknown"] = True
        side.tokenizer.save_pretrained(source.tokenizer)


def test_what_is_written_in_a_moment_shows_no_bar(side, tmp_path, capfd):
    side.export(tmp_path)
    assert capfd.readouterr() == ("", "")
