"""What the recipes of the small models are tested on."""

import pytest
from tiny_shapes import VAE

from longreel.models.vae_build import random_vae


@pytest.fixture(scope="module")
def vae():
    return random_vae(VAE, seed=0)
