"""Parts of a model are told apart by what they hold, and not by what their files are called."""

import json

import pytest
import torch
from safetensors.torch import save_file

from longreel.models.fingerprint import fingerprint, fingerprint_part


def weights(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({"w": torch.randn(600_000, generator=generator)}, path)
    return path


@pytest.mark.parametrize("of", [fingerprint, fingerprint_part])
def test_weights_are_known_under_any_name_and_in_any_folder(tmp_path, of):
    file = weights(tmp_path / "a/model.safetensors")
    known = of(file.parent)
    assert of(weights(tmp_path / "b/other.safetensors").parent) == known
    assert of(weights(tmp_path / "c/model.safetensors", seed=1).parent) != known


def test_a_shard_renamed_with_its_index_is_the_same(tmp_path):
    for folder, names in (("a", ("one", "two")), ("b", ("x", "y"))):
        for seed, name in enumerate(names):
            weights(tmp_path / folder / f"{name}.safetensors", seed)
        index = {"weight_map": {str(i): f"{name}.safetensors" for i, name in enumerate(names)}}
        (tmp_path / folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fingerprint_part(tmp_path / "a") == fingerprint_part(tmp_path / "b")


def test_what_a_config_says_is_of_its_part(tmp_path):
    folder = weights(tmp_path / "vae/model.safetensors").parent
    (folder / "config.json").write_text('{"latents_mean": [0.5]}')
    known = fingerprint_part(folder)
    (folder / ".DS_Store").write_text("seen")
    assert fingerprint_part(folder) == known
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".cache/huggingface/config.json.metadata").write_text("downloaded at noon")
    assert fingerprint_part(folder) == known
    (folder / "config.json").write_text('{"latents_mean": [0.6]}')
    assert fingerprint_part(folder) != known


def test_a_tokenizer_is_its_files_by_name(tmp_path):
    def tokenizer(name, **files):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / f"{file}.json").write_text(text)
        return fingerprint_part(tmp_path / name)

    long = "x" * 3_000_000
    known = tokenizer("a", tokenizer=long, added="")
    assert tokenizer("b", tokenizer=long, added="") == known
    middle = f"{long[:1_234_567]}y{long[1_234_568:]}"
    assert tokenizer("c", tokenizer=middle, added="") != known
    assert tokenizer("d", tokenizer="", added=long) != known
    assert tokenizer("e", tokenizer=long) != known
