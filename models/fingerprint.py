"""A short name for the content of a model's part, which stays when files are moved or copied."""

import hashlib
from pathlib import Path

from .tensor_files import SAFETENSORS, TORCH
from .weights import weight_files

SCHEME = "1"  # another, once other bytes are looked at: names by two of them cannot be compared
_SAMPLE_BYTES = 2**16
_SAMPLES = 16  # spread evenly over a file, besides its first MiB
_WHOLE_BYTES = 2**26  # of a file that is no weights: a tokenizer has 17 MB


def fingerprint(path: Path) -> str:
    """Of a weights file, or of those in a folder, whatever their names: sizes, and samples of their
    bytes.

    Reading 28 GB would take longer than many a render; another training of the same model differs
    in every sample.
    """
    return _digest(*map(_sampled, weight_files(path)))


def fingerprint_part(path: Path) -> str:
    """Likewise, and of all that is read by its name beside weights, or without any: a VAE's
    config.json has the statistics of its latents, and of a tokenizer every word may count."""
    if not path.is_dir():
        return fingerprint(path)
    weights = [file for file in path.iterdir() if file.suffix in SAFETENSORS + TORCH]
    beside = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file not in weights
        # what a system or a download keeps for itself: .DS_Store, .cache/huggingface
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and not file.name.endswith(".index.json")  # names of files of weights
    )
    parts = [fingerprint(path).encode()] if weights else []
    for file in beside:
        is_small = file.stat().st_size <= _WHOLE_BYTES  # it may be weights for another library
        content = file.read_bytes() if is_small else _sampled(file)
        parts += [file.relative_to(path).as_posix().encode(), content]
    return _digest(*parts)


def _sampled(file: Path) -> bytes:
    size = file.stat().st_size
    parts = [str(size).encode()]
    with file.open("rb") as opened:
        parts.append(opened.read(2**20))
        for i in range(_SAMPLES):
            opened.seek(size * i // _SAMPLES)
            parts.append(opened.read(_SAMPLE_BYTES))
    return b"".join(parts)


def _digest(*parts: bytes) -> str:
    """Of each part by itself, so that no bytes pass from one to the next unseen."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]
