"""Checkpoints that come with the package are used only as they were packed."""

import pytest

from longreel.models import shipped
from longreel.models.checkpoint import locate
from longreel.models.shipped import pack, shipped_folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A package with one checkpoint of two files."""
    (tmp_path / "small" / "vae").mkdir(parents=True)
    (tmp_path / "small" / "vae" / "config.json").write_text("{}")
    (tmp_path / "small" / "vae" / "weights.safetensors").write_bytes(b"weights")
    pack("small", tmp_path)
    monkeypatch.setattr(shipped, "_ROOT", tmp_path)
    monkeypatch.setattr(shipped._read_digests, "__defaults__", (tmp_path,))
    return tmp_path


def test_a_part_is_found_in_the_package(root):
    assert locate("shipped:small", "vae") == root / "small" / "vae"


def test_an_unknown_name_tells_those_that_are_there(root):
    with pytest.raises(ValueError, match=r"model.checkpoint=shipped:large .* shipped:small"):
        locate("shipped:large", "vae")


def test_a_flipped_bit_is_refused(root):
    (root / "small" / "vae" / "weights.safetensors").write_bytes(b"weightt")
    with pytest.raises(ValueError, match=r"weights.safetensors is not the file that was packed"):
        shipped_folder("shipped:small", "model.checkpoint")


def test_a_missing_file_is_refused(root):
    (root / "small" / "vae" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        shipped_folder("shipped:small", "model.checkpoint")
