"""The checkpoint that comes with the package is whole, small, and of the model we say it is."""

import json
from pathlib import Path

import pytest

from longreel.jobs.world.captions import vocabulary
from longreel.models import shipped
from longreel.models.arch import ARCHS
from longreel.models.checkpoint import check_transformer, locate
from longreel.models.text_encoder import check_encoder, load_tokenizer
from longreel.models.vae_load import check_vae

ROOT = Path(shipped.__file__).parent / "shipped"
DIGESTS = json.loads((ROOT / "digests.json").read_text())


@pytest.mark.parametrize("name", DIGESTS)
def test_a_transformer_is_of_its_architecture(name):
    check_transformer(f"shipped:{name}", "transformer", ARCHS[name].dit, name)


def test_the_other_parts_are_there_for_both():
    arch, reference = ARCHS["shapes"], "shipped:shapes"
    check_vae(locate(reference, "vae"), arch.vae)
    check_encoder(locate(reference, "text_encoder"), arch.dit.text_dim)
    known = load_tokenizer(locate(reference, "tokenizer")).get_vocab()
    assert set(vocabulary()) <= set(known)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_checkpoint_takes_at_most_16_mb_and_holds_nothing_else(name):
    files = [path for path in (ROOT / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert {path.relative_to(ROOT / name).as_posix() for path in files} == set(DIGESTS[name])


def test_the_small_models_ship():
    assert sorted(DIGESTS) == ["shapes", "shapes-live"]
