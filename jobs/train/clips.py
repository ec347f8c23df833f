"""A folder of videos with captions to what a DiT is trained on, encoded once and kept on disk.

C channels, T latents, H height, W width, S text tokens, D channels of a token.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ...configs.errors import first_line
from ...configs.files import expand
from ...configs.train_schema import DataConfig, FinetuneConfig
from ...models.arch import ARCHS
from ...models.checkpoint import locate
from ...models.fingerprint import fingerprint_part
from ...models.image import fit_image
from ...models.text import TEXT_FORMAT, TextSource, embed_prompts
from ...models.text_cache import identity
from ...models.vae import StreamingEncoder
from ...models.vae_load import load_vae
from ..home.durable import written_aside
from .latents import load_kept
from .store import make_folder

_FORMAT = 2  # of the files in the cache
_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}


def encode_clips(finetune: FinetuneConfig, data: DataConfig, device: torch.device) -> None:
    """Every clip of the folder that is not in the cache yet, by the checkpoint's own parts."""
    parts = _parts(finetune)
    todo = [pair for pair in _pairs(data) if not _kept(parts, data, pair[0]).exists()]
    lacks_empty = not _empty(parts, data).exists()
    if not todo and not lacks_empty:
        return
    arch = ARCHS[finetune.arch]
    make_folder("data.cache", _folder(data), "encoded clips have")
    empty_SD, *texts_SD = _encode(finetune, ["", *(caption for _, caption in todo)], device)
    if lacks_empty:
        with written_aside(_empty(parts, data)) as part:
            save_file({"text_SD": empty_SD}, part)
    if not todo:
        return
    path = locate(finetune.checkpoint, "vae", "finetune.checkpoint")
    vae = load_vae(path, arch.vae, device=device, dtype=torch.float32)
    for (video, _), text_SD in zip(todo, texts_SD, strict=True):
        latents_BCTHW = StreamingEncoder(vae).encode(_frames(video, data).to(device))
        with written_aside(_kept(parts, data, video)) as part:
            save_file({"latents_CTHW": latents_BCTHW[0].cpu(), "text_SD": text_SD}, part)


def find_clips(finetune: FinetuneConfig, data: DataConfig) -> tuple[list[Path], Tensor]:
    """The encoded clips, and the embedding of no prompt."""
    parts = _parts(finetune)
    files = [_kept(parts, data, video) for video, _ in _pairs(data)]
    return files, _padded(load_kept(_empty(parts, data))["text_SD"], finetune)


def read_clip(file: Path, finetune: FinetuneConfig) -> tuple[Tensor, Tensor]:
    """Latents C T H W, and the embedding of the caption, S D."""
    clip = load_kept(file)
    return clip["latents_CTHW"], _padded(clip["text_SD"], finetune)


def _padded(text_SD: Tensor, finetune: FinetuneConfig) -> Tensor:
    """As the DiT reads it. On disk are the words alone: of Wan's 512 tokens most are zeros."""
    return F.pad(text_SD, (0, 0, 0, ARCHS[finetune.arch].text_len - len(text_SD)))


def _pairs(data: DataConfig) -> list[tuple[Path, str]]:
    """Videos in the order of their names, with their captions."""
    folder = expand(data.folder)
    if not folder.is_dir():
        raise ValueError(
            f"data.folder={data.folder} is no folder, so there is nothing to learn from; name one "
            "that holds videos, and beside each a .txt file of the same name with its caption"
        )
    videos = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith(".")
    )
    if not videos:
        raise ValueError(
            f"data.folder={data.folder} holds no video ({', '.join(sorted(_SUFFIXES))}), so there "
            "is nothing to learn from; name another folder"
        )
    silent = [video.name for video in videos if not video.with_suffix(".txt").is_file()]
    if silent:
        raise ValueError(
            f"data.folder={data.folder} has no caption for {silent[0]} ({len(silent)} in all), so "
            f"nobody knows what it shows; write it to {Path(silent[0]).stem}.txt"
        )
    return [(video, _caption(video, data)) for video in videos]


def _caption(video: Path, data: DataConfig) -> str:
    file = video.with_suffix(".txt")
    try:
        return file.read_text("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.folder={data.folder}: {file.name} is not UTF-8 ({error.reason} at byte "
            f"{error.start}), so its caption cannot be read; save it as UTF-8"
        ) from None


def _frames(video: Path, data: DataConfig) -> Tensor:
    """The first frames, fitted to the size asked for: 1 C T H W in [-1, 1]."""
    import av

    try:
        images = islice(_read(video), data.frames)
        frames = [fit_image(image, data.height, data.width) for image in images]
    except (av.FFmpegError, IndexError) as error:  # the latter where it has sound alone
        raise ValueError(
            f"data.folder={data.folder}: {video.name} cannot be read as a video "
            f"({first_line(error)}), so it cannot be learnt from; take it out of the folder"
        ) from error
    if len(frames) < data.frames:
        raise ValueError(
            f"data.frames={data.frames} is more than the {len(frames)} of {video}, so it cannot "
            "be learnt from; make data.frames smaller, or take the video out of the folder"
        )
    return rearrange(torch.stack(frames), "T 1 C H W -> 1 C T H W")


def _read(video: Path) -> Iterator[Image.Image]:
    import av

    with av.open(str(video)) as container:
        for frame in container.decode(video=0):
            yield frame.to_image()


def _encode(finetune: FinetuneConfig, prompts: list[str], device: torch.device) -> list[Tensor]:
    """Of each its words alone: padded, a thousand of Wan's captions are eight gigabytes."""
    arch = ARCHS[finetune.arch]
    source = TextSource(
        encoder=locate(finetune.checkpoint, "text_encoder", "finetune.checkpoint"),
        tokenizer=locate(finetune.checkpoint, "tokenizer", "finetune.checkpoint"),
        text_len=arch.text_len,
        text_dim=arch.dit.text_dim,
        field="finetune.checkpoint",
    )
    each = embed_prompts(prompts, source, device=device, dtype=torch.float32, cache=None)
    return [embedding.rows_SD for embedding in each]


def _kept(parts: str, data: DataConfig, video: Path) -> Path:
    """Named by all that the encoded clip depends on."""
    caption = video.with_suffix(".txt").read_bytes()
    size = f"{data.frames} {data.height} {data.width}".encode()
    key = b"\0".join([identity(video).encode(), caption, size, parts.encode()])
    return _folder(data) / f"{hashlib.sha256(key).hexdigest()}.safetensors"


def _empty(parts: str, data: DataConfig) -> Path:
    name = hashlib.sha256(parts.encode()).hexdigest()
    return _folder(data) / f"{name}-empty.safetensors"


def _parts(finetune: FinetuneConfig) -> str:
    """What encodes, by its content: the folder of a checkpoint may hold another by tomorrow."""
    known = (
        fingerprint_part(locate(finetune.checkpoint, part, "finetune.checkpoint"))
        for part in ("vae", "text_encoder", "tokenizer")
    )
    return " ".join([finetune.arch, f"{_FORMAT} {TEXT_FORMAT}", *known])


def _folder(data: DataConfig) -> Path:
    return expand(data.cache)
