"""How long this machine takes for the parts of a model, measured with random weights."""

import math
from collections.abc import Callable
from functools import partial
from statistics import mean

import torch
from torch import Tensor

from ..models.arch import ModelArch
from ..models.random_weights import fill_random
from ..models.vae import StreamingDecoder
from ..models.vae_build import random_vae
from ..models.wan import WanDiT, keep_float32
from .calibrate_ends import copy_seconds, end_seconds, now
from .cost import Seconds, layer_parameters, pair_flops, token_flops
from .kinds import commonest_task
from .schedule import BlockSchedule

_RUNS = 3
_COLD_BYTES = 2**27  # of weights: more than caches keep from one task to the next


def calibrate(
    arch: ModelArch,
    schedule: BlockSchedule,
    *,
    height: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    vae_dtype: torch.dtype = torch.float32,
) -> Seconds:
    """Seconds of a layer, embedding, head and decoder at the window the schedule has most of, and
    of what a task takes beside them.

    Other windows follow by their products, as one layer is one kind of work. One layer alone would
    find its weights in a cache every time, and a stage does not: several are run in a row.
    """
    task = commonest_task(schedule)
    latents, context = task.num_latents, task.num_cached
    dit = arch.dit
    stride = arch.vae.space_stride
    rows, columns = height // stride, width // stride
    per_latent = (rows // dit.patch[1]) * (columns // dit.patch[2])
    queries, keys = latents * per_latent, (latents + context) * per_latent
    layers = range(
        min(dit.num_layers, math.ceil(_COLD_BYTES / (layer_parameters(dit) * dtype.itemsize)))
    )
    with torch.device("meta"):
        model = WanDiT(dit, layers)
    fill_random(model, seed=0, device=device, dtype=dtype, keep_float32=keep_float32)
    shape = 1, context * per_latent, dit.num_heads, dit.head_dim
    cache = _Context(torch.zeros(shape, dtype=dtype, device=device))
    images = dit.image_positions or 257
    embed = partial(
        model.embed,
        torch.randn(1, dit.in_channels, latents, rows, columns, device=device),
        torch.full((1, 1), 500.0),
        torch.randn(1, arch.text_len, dit.text_dim, dtype=dtype, device=device),
        None if dit.image_dim is None else torch.randn(1, images, dit.image_dim, device=device),
        positions=range(latents),
        context_positions=range(latents, latents + context),
    )
    with torch.inference_mode():
        state = embed()
        embed_s = _seconds(device, embed)
        layer_s = _seconds(device, lambda: model.run_layers(state, layers, cache)) / len(layers)
        head_s = _seconds(device, lambda: model.head(state))
        decode_s = _decode_seconds(arch, rows, columns, device, vae_dtype)
        copy_s = copy_seconds(state.tokens_BLD)
    window_s, step_s = end_seconds(arch, schedule, rows, columns, device)
    token, pair = token_flops(dit, arch.text_len), pair_flops(dit)
    per_flop = layer_s / (queries * (token + keys * pair))
    return Seconds(
        token=per_flop * token,
        pair=per_flop * pair,
        embed_token=embed_s / queries,
        head_token=head_s / queries,
        window=window_s,
        step=step_s,
        copy=copy_s,
        decode_latent=decode_s,
    )


class _Context:
    """As many keys and values as a window reads besides its own."""

    def __init__(self, tokens_BLHD: Tensor) -> None:
        self._tokens_BLHD = tokens_BLHD

    def read(self, layer: int) -> tuple[Tensor, Tensor] | None:
        return (self._tokens_BLHD, self._tokens_BLHD) if self._tokens_BLHD.shape[1] else None

    def write(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        pass


def _decode_seconds(
    arch: ModelArch, rows: int, columns: int, device: torch.device, dtype: torch.dtype
) -> float:
    decoder = StreamingDecoder(random_vae(arch.vae, 0, device=device, dtype=dtype))
    latent_BCTHW = torch.randn(1, arch.vae.z_dim, 1, rows, columns, device=device, dtype=dtype)
    decoder.decode(latent_BCTHW)  # the first latent of a video is one frame and goes faster
    return _seconds(device, lambda: decoder.decode(latent_BCTHW))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """The mean of a few runs after one that warms up: what many of them add up to."""
    work()
    times = []
    for _ in range(_RUNS):
        start = now(device)
        work()
        times.append(now(device) - start)
    return mean(times)
