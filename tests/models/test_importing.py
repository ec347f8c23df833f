"""What imports of large libraries leave behind: the collector as it was, whole modules."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
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


def test_threads_import_one_after_the_other(tmp_path, monkeypatch):
    """A module that puts another in its place, as transformers does, is whole for all of them."""
    (tmp_path / "replaced.py").write_text(
        "import sys, time, types\n"
        "time.sleep(0.2)  # for the others to come\n"
        "sys.modules[__name__] = types.SimpleNamespace(found=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    start = threading.Barrier(3)

    def find(_):
        start.wait()
        with importing():
            from replaced import found
        return found

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(find, range(3))) == [1, 1, 1]
