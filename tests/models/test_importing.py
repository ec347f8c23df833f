"""Garbage is looked for again after an import, whatever became of it, if it was before."""

import gc
from contextlib import suppress

import pytest

from longreel.models.importing import importing


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize("error", [None, ImportError()])
def test_an_import_leaves_the_collector_as_it_was(is_on, error):
    was_on = gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        with suppress(ImportError), importing():
            assert not gc.isenabled()
            if error:
                raise error
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if was_on else gc.disable)()
