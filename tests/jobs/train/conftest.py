"""What the recipes of the small models are tested on."""

import pytest
from tiny_shapes import VAE, random_clips

from longreel.models.vae_build import random_vae


@pytest.fixture(scope="module")
def vae():
    return random_vae(VAE, seed=0)


@pytest.fixture(scope="module")
def clips():
    return random_clips(8, 7)
