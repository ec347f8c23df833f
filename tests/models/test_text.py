"""Text embeddings, against diffusers' WanPipeline; and their cache on disk."""

import gc
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.pipelines.wan import pipeline_wan
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from tiny_text import (
    write_original_text_encoder,
    write_published_tokenizer,
    write_text_encoder,
    write_tokenizer,
)
from tokenizers import Tokenizer
from transformers import AutoTokenizer, UMT5EncoderModel

from longreel.configs.load import load_config
from longreel.models.text import TextSource, clean_prompt, encode_prompts
from longreel.models.text_cache import Embedding, TextCache
from longreel.models.text_encoder import load_tokenizer

PROMPTS = ("A red cat walks on the grass.", "", "dog " * 40, "  a&amp;amp;b \n cat ")
CPU = torch.device("cpu")
TEXT_LEN = 24
TEXT_DIM = 20
WIDE = "\uff0c\uff21\ufb01e\u0301\u00e2\u20ac\u2122"  # also a ligature, an accent, a broken quote


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> TextSource:
    """A checkpoint that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def write_checkpoint(folder: Path) -> TextSource:
    write_text_encoder(folder / "text_encoder", TEXT_DIM)
    write_tokenizer(folder / "tokenizer")
    return TextSource(folder / "text_encoder", folder / "tokenizer", TEXT_LEN, TEXT_DIM)


def encode(prompts, source, *, dtype=torch.float32, cache=None):
    return encode_prompts(prompts, source, device=CPU, dtype=dtype, cache=cache)


def files(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_are_diffusers_bit_for_bit(published, dtype, tmp_path):
    pipeline = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(published.tokenizer),
        text_encoder=UMT5EncoderModel.from_pretrained(published.encoder, dtype=dtype),
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    with torch.no_grad():
        expected = torch.cat(
            [
                pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=TEXT_LEN)
                for prompt in PROMPTS
            ]
        )

    fresh = encode(PROMPTS, published, dtype=dtype)
    filled = encode(PROMPTS, published, dtype=dtype, cache=tmp_path)
    cached = encode(PROMPTS, published, dtype=dtype, cache=tmp_path)

    assert expected.dtype == fresh.dtype == cached.dtype == dtype
    assert torch.equal(fresh, expected)
    assert torch.equal(filled, expected)
    assert torch.equal(cached, expected)
    assert not expected[1, 1:].any(), "an empty prompt is its end token and padding"


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.text("&amp;lt#x2039 \t\n\x0b\x1c\x85\xa0\u2003\u200b\u2019\u201c")
    | st.text("a b'\"\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2013" + WIDE)
)
def test_prompts_are_cleaned_as_in_diffusers_with_ftfy(text):
    assert pipeline_wan.is_ftfy_available()
    assert clean_prompt(text) == pipeline_wan.prompt_clean(text)


@pytest.mark.parametrize("preset", ["wan2.1-t2v-1.3b", "wan2.2-ti2v-5b"])
def test_commas_of_wan_s_own_negative_prompt_are_plain_ones(preset):
    prompt = load_config(preset).sampling.negative_prompt
    assert "\uff0c" in prompt
    assert clean_prompt(prompt) == prompt.replace("\uff0c", ",")


def test_a_tokenizer_s_file_is_read_as_it_is(tmp_path):
    """As the one of UMT5 is published: under T5's name, with unknown characters by number 3."""
    write_published_tokenizer(tmp_path)
    ours, theirs = load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("a cat \u4e2d on the grass", "x \u2581 y", "a dog </s> runs", "a  cat"):
        assert ours([text]).input_ids == [theirs.encode(text).ids], text
    assert 3 in ours(["a cat \u4e2d"]).input_ids[0]


def test_the_original_file_gives_the_embeddings_of_the_diffusers_folder(published, tmp_path):
    write_original_text_encoder(tmp_path / "models_t5.pth", TEXT_DIM)
    original = replace(published, encoder=tmp_path / "models_t5.pth")

    # transformers' default of 32 buckets is not what the tiny one has: it is read off the shapes
    assert torch.equal(encode(PROMPTS, original), encode(PROMPTS, published))


@pytest.mark.parametrize(
    "names", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")]
)
def test_the_token_embedding_is_found_under_either_name_or_both(published, tmp_path, names):
    source = write_checkpoint(tmp_path)
    tensors = load_file(source.encoder / "model.safetensors")
    table = tensors.pop("shared.weight")
    tensors |= {f"{name}.weight": table.clone() for name in names}
    save_file(tensors, source.encoder / "model.safetensors")

    assert torch.equal(encode(PROMPTS[:1], source), encode(PROMPTS[:1], published))


def test_without_files_the_encoder_is_the_same_every_time_and_no_generator_moves():
    source = TextSource(None, None, text_len=64, text_dim=32)
    before = torch.random.get_rng_state()
    first = encode(("a cat", "b"), source)
    torch.manual_seed(1)
    second = encode(("a cat", "b"), source)

    assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(1).get_state())
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    assert first.shape == (2, 64, 32)
    assert not torch.equal(first[0], first[1])
    assert first[0, :6].abs().amax(dim=1).gt(0).all(), "five bytes and the end"
    assert not first[0, 6:].any()


def test_a_truncated_prompt_is_reported_with_what_is_lost_also_from_the_cache(
    published, tmp_path, caplog
):
    prompt = "dog " * (TEXT_LEN - 1) + "the red cat walks slowly"
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "longreel"):
            encode((prompt, "a cat"), published, cache=tmp_path)
        (record,) = caplog.records
        assert "5 tokens more than the 24" in record.getMessage()
        assert "'the red cat walks slowly'" in record.getMessage()


def test_the_encoder_is_released_when_the_embeddings_are_there(published):
    encode(("a cat",), published)
    assert not [o for o in gc.get_objects() if type(o) is UMT5EncoderModel]


def test_nothing_is_loaded_when_the_cache_has_every_prompt(published, tmp_path, monkeypatch):
    expected = encode(PROMPTS, published, cache=tmp_path)
    monkeypatch.setattr("transformers.UMT5EncoderModel.__init__", None)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.from_pretrained", None)

    assert torch.equal(encode(PROMPTS[::-1], published, cache=tmp_path), expected.flip(0))
    with pytest.raises(ValueError, match="not callable"):
        encode(("something new",), published, cache=tmp_path)


def test_the_cache_holds_no_padding(published, tmp_path):
    encode(("a cat",), replace(published, text_len=512), cache=tmp_path)
    (file,) = files(tmp_path)
    assert load_file(file)["rows"].shape == (3, TEXT_DIM)


def test_changed_weights_are_never_served_from_the_cache(tmp_path):
    source = write_checkpoint(tmp_path)
    cache = tmp_path / "cache"
    before = encode(("a cat",), source, cache=cache)

    file = source.encoder / "model.safetensors"
    for name in ("encoder.final_layer_norm.weight", "encoder.block.0.layer.1.layer_norm.weight"):
        stat = file.stat()
        tensors = load_file(file)
        tensors[name] = tensors[name] + 1
        save_file(tensors, file, {"format": "pt"})
        if "final" in name:  # another file under the old date; the other is an edit in place
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file.stat().st_size == stat.st_size
        after = encode(("a cat",), source, cache=cache)
        assert not torch.equal(after, before)
        assert torch.equal(after, encode(("a cat",), source))
        before = after


def test_tokenizer_length_and_dtype_have_embeddings_of_their_own(published, tmp_path):
    changes = (
        {"source": published},
        {"source": replace(published, tokenizer=None)},
        {"source": replace(published, text_len=2)},
        {"source": published, "dtype": torch.bfloat16},
    )
    for num_files, change in enumerate(changes, start=1):
        cached = encode(("a cat",), **change, cache=tmp_path)
        assert torch.equal(cached, encode(("a cat",), **change))
        assert len(files(tmp_path)) == num_files


DAMAGE = {
    "end cut off": lambda data: data[:-10],
    "header cut off": lambda data: data[:5],
    "empty": lambda data: b"",
    "one bit changed": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "something else": lambda data: b"{}" * 40,
    "no checksum": lambda data: save({"rows": torch.zeros(3, 4)}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_file_is_logged_and_removed(tmp_path, caplog, damage):
    cache = TextCache(tmp_path)
    cache.put("key", Embedding(torch.randn(3, 4), 2, "two words"))
    whole = cache.get("key")
    (file,) = files(tmp_path)
    file.write_bytes(damage(file.read_bytes()))

    with caplog.at_level(logging.WARNING, "longreel"):
        assert cache.get("key") is None
    assert (whole.dropped, whole.dropped_words) == (2, "two words")
    assert "corrupt" in caplog.text
    assert not files(tmp_path)


def test_a_damaged_cache_file_is_made_again(published, tmp_path):
    expected = encode(("a cat",), published, cache=tmp_path)
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-10])

    assert torch.equal(encode(("a cat",), published, cache=tmp_path), expected)
    assert files(tmp_path) == [file]
    assert load_file(file)["rows"].equal(expected[0, :3])


def test_a_cache_that_cannot_be_written_costs_a_warning_only(published, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "longreel"):
        found = encode(("a cat",), published, cache=tmp_path / "file" / "cache")
    assert "cannot be written" in caplog.text
    assert torch.equal(found, encode(("a cat",), published))


def test_writers_of_one_key_never_show_each_other_half_a_file(tmp_path, caplog):
    rows = {value: torch.full((400, 64), float(value)) for value in range(4)}

    def work(value: int) -> list[Embedding | None]:
        cache = TextCache(tmp_path)
        seen = []
        for _ in range(10):
            cache.put("key", Embedding(rows[value]))
            seen.append(cache.get("key"))
        return seen

    with ThreadPoolExecutor(4) as pool, caplog.at_level(logging.WARNING, "longreel"):
        seen = [embedding for found in pool.map(work, rows) for embedding in found]
    assert len(seen) == 40
    for embedding in seen:
        assert embedding is not None
        assert torch.equal(embedding.rows_SD, rows[int(embedding.rows_SD[0, 0])])
    assert not caplog.records
    assert [file.name for file in files(tmp_path)] == ["key.safetensors"]


@pytest.mark.parametrize("limit", [{"max_files": 3}, {"max_bytes": 3 * 1100}])
def test_the_cache_is_bounded_and_what_was_used_last_stays(tmp_path, limit):
    cache = TextCache(tmp_path, **limit)
    (tmp_path / "left.tmp").write_text("by a process that died")
    os.utime(tmp_path / "left.tmp", (0, 0))
    rows = torch.zeros(25, 8)  # 800 bytes and a header
    for age, key in enumerate("abc"):
        cache.put(key, Embedding(rows))
        os.utime(tmp_path / f"{key}.safetensors", (age + 1, age + 1))
    assert cache.get("a") is not None
    cache.put("d", Embedding(rows))

    assert cache.get("b") is None
    assert [file.stem for file in files(tmp_path)] == ["a", "c", "d"]


def test_what_a_user_can_get_wrong_says_what_to_do(published, tmp_path):
    absent = tmp_path / "text_encoder"
    with pytest.raises(ValueError, match=r"model\.checkpoint: .*text_encoder does not exist"):
        encode(("a",), replace(published, encoder=absent), cache=tmp_path)
    with pytest.raises(ValueError, match=r"makes 20 channels and model\.arch reads 32"):
        encode(("a",), replace(published, text_dim=32))
    with pytest.raises(ValueError, match=r"prompt='a\\udcff'.*position 1 .*UTF-8"):
        encode(("a\udcff",), published)

    damaged = write_checkpoint(tmp_path / "damaged")
    (damaged.tokenizer / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer in .* cannot be read .*download"):
        encode(("a",), damaged)
    (damaged.encoder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is not there or not readable"):
        encode(("a",), replace(damaged, tokenizer=None))
    torch.save({"token_embedding.weight": torch.zeros(4, 4)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not Wan's UMT5 encoder"):
        encode(("a",), replace(published, encoder=tmp_path / "other.pth"))


def test_a_tokenizer_of_another_model_and_an_overflow_are_errors(tmp_path):
    source = write_checkpoint(tmp_path)
    tensors = load_file(source.encoder / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"] *= float("inf")
    save_file(tensors, source.encoder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.dtype=float32 .*'a cat' infinite.*bfloat16"):
        encode(("a cat",), source)

    config = (source.encoder / "config.json").read_text()
    (source.encoder / "config.json").write_text(
        config.replace('"vocab_size": 384', '"vocab_size": 5')
    )
    tensors["shared.weight"] = tensors["shared.weight"][:5].clone()
    save_file(tensors, source.encoder / "model.safetensors")
    with pytest.raises(ValueError, match=r"gives token \d+ and .* knows 5: .*one checkpoint"):
        encode(("a cat",), source)
