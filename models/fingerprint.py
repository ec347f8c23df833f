"""A short name for the content of weights, which stays when files are moved or copied."""

import hashlib
import json
from pathlib import Path

from .weights import weight_files

_SAMPLE_BYTES = 2**16
_SAMPLES = 16  # spread evenly over a file, besides its first MiB


def fingerprint(path: Path) -> str:
    """Of a weights file, or of all in a folder: names, sizes, and samples of their bytes.

    Reading 28 GB would take longer than many a render; another training of the same model differs
    in every sample.
    """
    digest = hashlib.sha256()
    for file in weight_files(path):
        size = file.stat().st_size
        digest.update(json.dumps([file.name, size]).encode())
        with file.open("rb") as opened:
            digest.update(opened.read(2**20))
            for i in range(_SAMPLES):
                opened.seek(size * i // _SAMPLES)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
