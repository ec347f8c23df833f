"""What stands before and behind the DiT: words and pictures to what it reads, latents to frames.

B batch, C channels, T latents or frames, H height, W width, S text tokens, D channels of a token.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..models.shelf import Shelf
from ..models.vae import StreamingDecoder, to_uint8
from ..models.vae_state import DecoderState
from ..parallel.tiles import TileEdges, TileWorker
from .condition import Condition
from .cost import Seconds
from .errors import RenderError
from .parts import check_parts, encode_condition, encode_texts, load_plan_vae
from .plan import Plan
from .slices import find_measured

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


Decoded = npt.NDArray[np.uint8] | DecoderState


class Codec:
    """On one device, which need not be the DiT's; what it returns is on the host."""

    def __init__(self, plan: Plan, shelf: Shelf | None = None) -> None:
        self._plan = plan
        self._shelf = shelf or Shelf(keep=False)
        self._num_frames = 0  # decoded so far
        self._tiles: TileWorker | None = None

    def check(self) -> None:
        """ValueError unless every file is there, whole, and of this model."""
        check_parts(self._plan)

    def measured(self) -> Seconds | None:
        """What was measured of the DiT on this machine's device."""
        return find_measured(self._plan, self._plan.device)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """(prompts, S, D)."""
        return encode_texts(self._plan, prompts).cpu()

    def condition(self) -> Condition:
        """What the request's pictures become."""
        return encode_condition(self._plan, self._vae).to(torch.device("cpu"))

    def decode(self, latents_BCTHW: Tensor, keep: bool = False) -> Iterator[Decoded]:
        """The frames of the next latents, T H W C, an array per latent.

        With `keep` the state after them follows, from which another decoder goes on.
        """
        for latent_BCTHW in torch.split(latents_BCTHW, 1, dim=2):
            if self._tiles is None:
                frames_BCTHW = self._decoder.decode(latent_BCTHW)
            else:
                frames_BCTHW = self._tiles.frames(latent_BCTHW)
            finite = torch.isfinite(frames_BCTHW).all()  # read behind them: one wait for the device
            frames_THWC = to_uint8(frames_BCTHW).cpu().numpy()
            _check_finite(bool(finite), self._num_frames)
            self._num_frames += len(frames_THWC)
            yield frames_THWC
        if keep:
            yield (self._tiles or self._decoder).state()

    def restore(self, state: DecoderState, num_frames: int) -> None:
        """Go on where another decoder stood, after so many frames."""
        (self._tiles or self._decoder).restore(state)
        self._num_frames = num_frames

    def close(self) -> None:
        """The VAE, and what others of its kind exchange with it."""
        if self._tiles is not None:
            self._tiles.close()
        for part in ("_decoder", "_vae"):
            vars(self).pop(part, None)

    def share_tiles(self, edges: TileEdges) -> None:
        """Before the first latent: this is one of several that decode the same."""
        tile = self._plan.config.model.vae_tile
        self._tiles = TileWorker(edges, lambda mine: StreamingDecoder(self._vae, tile, mine))

    def decode_tiles(self, latents_BCTHW: Tensor, keep: bool = False) -> None:
        """Of the next latents, for the first of those workers; and then their state, if asked."""
        assert self._tiles is not None
        try:
            for latent_BCTHW in torch.split(latents_BCTHW, 1, dim=2):
                self._tiles.send(latent_BCTHW)
            if keep:
                self._tiles.send_state()
        except BaseException:
            self._tiles.close()  # so that the first does not wait
            raise

    @cached_property
    def _decoder(self) -> StreamingDecoder:
        return StreamingDecoder(self._vae, self._plan.config.model.vae_tile)

    @cached_property
    def _vae(self) -> "AutoencoderKLWan":
        plan = self._plan
        return self._shelf.get(plan.config.model, "vae", lambda: load_plan_vae(plan))


def _check_finite(finite: bool, start: int) -> None:
    if not finite:
        raise RenderError(
            f"the VAE made NaN or infinity of the latent that frame {start} begins, so the "
            "video would turn black; try model.vae_dtype=bfloat16 or float32, or check its weights"
        )
