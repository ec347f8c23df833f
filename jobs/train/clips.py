"""A folder of videos with captions to what a DiT is trained on, encoded once and kept on disk.

C channels, T latents, H height, W width, S text tokens, D channels of a token.
"""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...configs.files import expand
from ...configs.train_schema import DataConfig, FinetuneConfig
from ...models.arch import ARCHS
from ...models.checkpoint import locate
from ...models.image import fit_image
from ...models.text import TEXT_FORMAT, TextSource, encode_prompts
from ...models.text_cache import identity
from ...models.vae import StreamingEncoder
from ...models.vae_load import load_vae
from ..home.durable import written_aside

_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi"}


def encode_clips(finetune: FinetuneConfig, data: DataConfig, device: torch.device) -> None:
    """Every clip of the folder that is not in the cache yet, by the checkpoint's own parts."""
    todo = [pair for pair in _pairs(data) if not _kept(finetune, data, pair[0]).exists()]
    lacks_empty = not _empty(finetune, data).exists()
    if not todo and not lacks_empty:
        return
    arch = ARCHS[finetune.arch]
    _folder(data).mkdir(parents=True, exist_ok=True)
    empty_SD, *texts_NSD = _encode(finetune, ["", *(caption for _, caption in todo)], device)
    if lacks_empty:
        with written_aside(_empty(finetune, data)) as part:
            save_file({"text_SD": empty_SD.cpu().clone()}, part)
    if not todo:
        return
    path = locate(finetune.checkpoint, "vae", "finetune.checkpoint")
    vae = load_vae(path, arch.vae, device=device, dtype=torch.float32)
    for (video, _), text_SD in zip(todo, texts_NSD, strict=True):
        latents_BCTHW = StreamingEncoder(vae).encode(_frames(video, data).to(device))
        with written_aside(_kept(finetune, data, video)) as part:
            clip = {"latents_CTHW": latents_BCTHW[0].cpu(), "text_SD": text_SD.cpu().clone()}
            save_file(clip, part)


def read_clips(finetune: FinetuneConfig, data: DataConfig) -> tuple[list[Path], Tensor]:
    """The encoded clips, and the embedding of no prompt."""
    files = [_kept(finetune, data, video) for video, _ in _pairs(data)]
    return files, load_file(_empty(finetune, data))["text_SD"]


def _pairs(data: DataConfig) -> list[tuple[Path, str]]:
    """Videos in the order of their names, with their captions."""
    folder = expand(data.folder)
    if not folder.is_dir():
        raise ValueError(
            f"data.folder={data.folder} is no folder, so there is nothing to learn from; name one "
            "that holds videos, and beside each a .txt file of the same name with its caption"
        )
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
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
    return [(video, video.with_suffix(".txt").read_text("utf-8").strip()) for video in videos]


def _frames(video: Path, data: DataConfig) -> Tensor:
    """The first frames, fitted to the size asked for: 1 C T H W in [-1, 1]."""
    frames = [
        fit_image(image, data.height, data.width) for image in islice(_read(video), data.frames)
    ]
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


def _encode(finetune: FinetuneConfig, prompts: list[str], device: torch.device) -> Tensor:
    arch = ARCHS[finetune.arch]
    source = TextSource(
        encoder=locate(finetune.checkpoint, "text_encoder", "finetune.checkpoint"),
        tokenizer=locate(finetune.checkpoint, "tokenizer", "finetune.checkpoint"),
        text_len=arch.text_len,
        text_dim=arch.dit.text_dim,
    )
    return encode_prompts(prompts, source, device=device, dtype=torch.float32, cache=None)


def _kept(finetune: FinetuneConfig, data: DataConfig, video: Path) -> Path:
    """Named by all that the encoded clip depends on."""
    caption = video.with_suffix(".txt").read_bytes()
    size = f"{data.frames} {data.height} {data.width}".encode()
    key = b"\0".join([identity(video).encode(), caption, size, _checkpoint(finetune)])
    return _folder(data) / f"{hashlib.sha256(key).hexdigest()}.safetensors"


def _empty(finetune: FinetuneConfig, data: DataConfig) -> Path:
    name = hashlib.sha256(_checkpoint(finetune)).hexdigest()
    return _folder(data) / f"{name}-empty.safetensors"


def _checkpoint(finetune: FinetuneConfig) -> bytes:
    return f"{finetune.arch} {finetune.checkpoint} {TEXT_FORMAT}".encode()


def _folder(data: DataConfig) -> Path:
    return expand(data.cache)
