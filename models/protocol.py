"""What the pipeline asks of a video DiT, and what passes between its parts.

B batch, C channels, T latents, L tokens, S text tokens, N image tokens, D width, R distinct levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """What levels do to tokens: a row per distinct level, and which row a run of tokens has."""

    embedding_RD: Tensor  # float32, for the head
    rows_R6D: Tensor  # float32, for the layers
    index_BF: Tensor | None  # row of each run of tokens; none: one for all, or for each in its turn

    def of_tokens(self, places_L: Tensor) -> "Modulation":
        """A row for every token by itself, for tokens in another order: `places_L` of the old."""
        if self.index_BF is None:
            return self
        run = len(places_L) // self.index_BF.shape[1]
        return replace(self, index_BF=self.index_BF.repeat_interleave(run, dim=1)[:, places_L])


@dataclass(frozen=True)
class TokenOrder:
    """How a window's tokens are ordered between patchify and unpatchify (kernels/order.py)."""

    name: str = "raster"
    by_latent: bool = False  # latent after latent whatever the order, so that they are cached alone
    tile: int = 128


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """Where a window's tokens stand: what rotary positions are made from, wherever it is."""

    times: tuple[int, ...]  # position of every latent
    context_times: tuple[int, ...]  # of latents whose keys and values a cache brings
    height: int  # tokens
    width: int
    causal_latents: int  # runs of so many latents see no later run; 0: all see all
    order: TokenOrder = TokenOrder()


@dataclass(frozen=True, kw_only=True)
class DiTState:
    """A window on its way through the layers."""

    tokens_BLD: Tensor
    modulation: Modulation
    text_BSD: Tensor  # projected to the model's width
    image_BND: Tensor | None
    window: WindowShape


class LayerCache(Protocol):
    """Keys (normalised, not rotated) and values that outlive a window, each (B, tokens, H, D)."""

    def read(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """What this layer's queries attend to besides their own window."""

    def write(self, layer: int, k_BLHD: Tensor, v_BLHD: Tensor) -> None:
        """Take what this layer made of its own window; the cache decides what it keeps."""


# of a layer: queries (B, L, H, D), keys and values (B, S, H, D), turned -> (B, L, H, D)
AttendTokens = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class VideoDiT(Protocol):
    """A transformer that predicts velocity, in three calls, so that it can be cut at any layer."""

    num_layers: int

    def embed(
        self,
        latents_BCTHW: Tensor,
        timesteps_BT: Tensor,
        text_BSD: Tensor,
        image_BND: Tensor | None = None,
        *,
        positions: Sequence[int] | None = None,
        context_positions: Sequence[int] = (),
        causal_latents: int = 0,
        fps: int = 16,
        order: TokenOrder = TokenOrder(),
        tell_apart: bool = True,
    ) -> DiTState:
        """Latents to tokens. Timesteps are (B, 1), or (B, T) where latents differ in level.

        They are on the host and equal ones are one level: to tell them apart on a GPU would be to
        wait for it. Without `tell_apart` they may be anywhere, and each is a level of its own.

        `positions` numbers the latents on the time axis (0, 1, ... unless given),
        `context_positions` those that a cache will bring.
        """

    def run_layers(
        self,
        state: DiTState,
        layers: range,
        cache: LayerCache | None = None,
        *,
        attend_tokens: AttendTokens | None = None,
    ) -> DiTState:
        """`attend_tokens`: who attends to whom; none: every token to every other."""

    def head(self, state: DiTState) -> Tensor:
        """Tokens to velocity, shaped as the latents (without conditioning channels)."""
