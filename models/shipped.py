"""The checkpoints that come with the package: where they are, and that they are whole."""

import hashlib
import json
from pathlib import Path

PREFIX = "shipped:"  # of a reference to one
_ROOT = Path(__file__).parent / "shipped"
_DIGESTS = "digests.json"  # of every file: checkpoint, path in it, SHA-256


def shipped_folder(reference: str, field: str, part: str = "") -> Path:
    """The folder of `shipped:NAME`, once every file of the part, or all, is as it was packed."""
    name, digests = reference.removeprefix(PREFIX), _read_digests()
    if name not in digests:
        raise ValueError(
            f"{field}={reference} is no checkpoint that comes with longreel, so there are no "
            f"weights to load; set it to {' or '.join(PREFIX + known for known in digests)}"
        )
    for path, digest in digests[name].items():
        if part and not path.startswith(f"{part}/"):
            continue
        check_digest(_ROOT / name / path, digest, f"{field}={reference}")
    return _ROOT / name


def check_digest(path: Path, digest: str, what: str) -> None:
    """ValueError when the file is gone or not the one that was packed."""
    if not path.is_file():
        raise ValueError(
            f"{what}: {path} is missing, so the model cannot be loaded; install longreel again"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(
            f"{what}: {path} is not the file that was packed (its SHA-256 differs), so its videos "
            f"would be another model's; install longreel again, or set {what.split('=')[0]} to the "
            f"folder if the weights are yours"
        )


def pack(name: str, root: Path = _ROOT) -> None:
    """Write down the digests of a checkpoint's files as they are now."""
    digests = _read_digests(root)
    files = sorted(path for path in (root / name).rglob("*") if path.is_file())
    digests[name] = {
        path.relative_to(root / name).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    (root / _DIGESTS).write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def _read_digests(root: Path = _ROOT) -> dict[str, dict[str, str]]:
    file = root / _DIGESTS
    digests: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.is_file() else {}
    return digests
