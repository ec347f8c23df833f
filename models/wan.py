"""The Wan-shaped DiT: Wan 2.1 and 2.2, SkyReels-V2, CausVid, Self-Forcing, LongLive.

B batch, C channels, T latents, F runs of tokens, L tokens, S text tokens, N image tokens, D width,
R distinct levels. Parameters are named as in the diffusers layout; layers are keyed by their global
index, so a slice's state is a literal subset of the checkpoint's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from ..kernels.norm import affine_norm, norm_modulate
from ..kernels.order import Grid, inverse, permutation
from ..kernels.rope import rotary_table
from .arch import WanArch
from .protocol import (
    AttendTokens,
    DiTState,
    LayerCache,
    Modulation,
    TokenOrder,
    WindowShape,
)
from .wan_layers import (
    AttendWindow,
    FeedForward,
    Layer,
    Rotary,
    WholeWindow,
    gelu_tanh,
    scale_shift_table,
)

_RASTER = TokenOrder()
_TABLES = 4  # of windows; of one at 720p up to 80 MB

# the published models were trained with these in float32; bfloat16 loses levels and small gates
_FLOAT32_PARTS = (
    "time_embedder",
    "time_proj",
    "scale_shift_table",
    ".norm1.",
    ".norm2.",
    "fps_",
)


def keep_float32(name: str) -> bool:
    """Whether a parameter stays in float32 when the model runs in a smaller type."""
    return any(part in name for part in _FLOAT32_PARTS)


class WanDiT(nn.Module):
    """All layers or a slice of them; the first slice also embeds, the last applies the head."""

    def __init__(
        self,
        arch: WanArch,
        layers: range | None = None,
        *,
        with_embed: bool = True,
        with_head: bool = True,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.num_layers = arch.num_layers
        self._rotary: dict[tuple[WindowShape, torch.device], Rotary] = {}
        dim = arch.dim
        if with_embed:
            self.patch_embedding = nn.Conv3d(arch.in_channels, dim, arch.patch, arch.patch)
            self.condition_embedder = _ConditionEmbedder(arch)
            if arch.fps_embedding:
                self.fps_embedding = nn.Embedding(2, dim)
                self.fps_projection = FeedForward(dim, dim, 6 * dim, silu)
        layers = range(arch.num_layers) if layers is None else layers
        self.blocks = nn.ModuleDict({str(i): Layer(arch) for i in layers})
        if with_head:
            self.proj_out = nn.Linear(dim, arch.out_channels * math.prod(arch.patch))
            self.scale_shift_table = scale_shift_table(2, dim)

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
        order: TokenOrder = _RASTER,
        tell_apart: bool = True,
    ) -> DiTState:
        """See VideoDiT."""
        embedder = self.condition_embedder
        dtype = self.patch_embedding.weight.dtype
        x_BDTHW = self.patch_embedding(latents_BCTHW.to(dtype))
        num_latents, height, width = x_BDTHW.shape[2:]
        window = WindowShape(
            times=tuple(range(num_latents) if positions is None else positions),
            context_times=tuple(context_positions),
            height=height,
            width=width,
            causal_latents=causal_latents,
            order=order,
        )
        for time in window.times + window.context_times:
            assert 0 <= time < self.arch.max_position, f"position {time} of a latent"
        tokens_BLD = rearrange(x_BDTHW, "b d t h w -> b (t h w) d").contiguous()
        modulation = self._modulation(timesteps_BT, num_latents, fps, tell_apart)
        if order.name != "raster":
            places_L = permutation(_grid(window, num_latents), tokens_BLD.device)
            tokens_BLD = tokens_BLD[:, places_L]
            if not order.by_latent:  # a run of tokens is one token now
                modulation = modulation.of_tokens(places_L)
        return DiTState(
            tokens_BLD=tokens_BLD,
            modulation=modulation,
            text_BSD=embedder.text_embedder(text_BSD.to(dtype)),
            image_BND=None if image_BND is None else embedder.image_embedder(image_BND.to(dtype)),
            window=window,
        )

    def run_layers(
        self,
        state: DiTState,
        layers: range,
        cache: LayerCache | None = None,
        attend_window: AttendWindow | None = None,
        *,
        attend_tokens: AttendTokens | None = None,
    ) -> DiTState:
        if attend_window is None:
            rotary = self.rotary(state.window, state.tokens_BLD.device)
            attend_window = WholeWindow(state.window, rotary, cache, attend_tokens)
        for i in layers:
            state = replace(state, tokens_BLD=self.blocks[str(i)](state, i, attend_window))
        return state

    def head(self, state: DiTState) -> Tensor:
        return self.unpatchify(self.project(state), state.window)

    def project(self, state: DiTState) -> Tensor:
        """Of every token by itself: its patch of the velocity, flat."""
        rows_R2D = self.scale_shift_table.float() + state.modulation.embedding_RD[:, None]
        (shift, scale), index_BF = rows_R2D.unbind(1), state.modulation.index_BF
        y_BLD = norm_modulate(state.tokens_BLD, scale, shift, index_BF, self.arch.eps)
        y_BLP: Tensor = self.proj_out(y_BLD)
        return y_BLP

    def unpatchify(self, y_BLP: Tensor, window: WindowShape) -> Tensor:
        _, p, q = self.arch.patch
        t, h, w = len(window.times), window.height, window.width
        if window.order.name != "raster":
            y_BLP = y_BLP[:, inverse(_grid(window, t), y_BLP.device)]
        pattern = "b (t h w) (p q c) -> b c t (h p) (w q)"
        velocity_BCTHW: Tensor = rearrange(y_BLP, pattern, t=t, h=h, w=w, p=p, q=q)
        return velocity_BCTHW

    def rotary(self, window: WindowShape, device: torch.device) -> Rotary:
        """The last windows' tables are kept: a render has few kinds, which take turns. In training
        all are, as there are few."""
        kept = self._rotary.pop((window, device), None)
        if kept is None:
            own_LC, context_LC = (
                rotary_table(times, window.height, window.width, self.arch.head_splits, device)
                for times in (window.times, window.context_times)
            )
            if window.order.name != "raster":
                own_LC, context_LC = (
                    table_LC[permutation(_grid(window, len(times)), device)]
                    for table_LC, times in (
                        (own_LC, window.times),
                        (context_LC, window.context_times),
                    )
                )
            kept = Rotary(own_LC, torch.cat([own_LC, context_LC]))
            if not self.training and len(self._rotary) == _TABLES:
                del self._rotary[next(iter(self._rotary))]
        self._rotary[window, device] = kept
        return kept

    def _modulation(
        self, timesteps_BT: Tensor, num_latents: int, fps: int, tell_apart: bool
    ) -> Modulation:
        assert timesteps_BT.shape[1:] in ((1,), (num_latents,))
        device = self.patch_embedding.weight.device
        levels_R, index_BF = timesteps_BT.flatten(), None
        if tell_apart:
            levels_R, of_run_BF = torch.unique(timesteps_BT.cpu(), return_inverse=True)
            index_BF = None if len(levels_R) == 1 else of_run_BF.to(device)
        embedding_RD, rows_R6D = self.condition_embedder.levels(levels_R.to(device))
        if self.arch.fps_embedding:
            row_1D = self.fps_embedding.weight[0 if fps == 16 else 1][None]
            rows_R6D = rows_R6D + self.fps_projection(row_1D).unflatten(1, (6, -1))
        return Modulation(
            embedding_RD=embedding_RD,
            rows_R6D=rows_R6D,
            index_BF=index_BF,
        )


def _grid(window: WindowShape, latents: int) -> Grid:
    order = window.order
    return Grid(latents, window.height, window.width, order.name, order.by_latent, order.tile)


def cast(model: WanDiT, dtype: torch.dtype) -> WanDiT:
    """Run the model in `dtype`, but for the parameters that stay in float32."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keep_float32(name) else dtype)
    return model


class _ConditionEmbedder(nn.Module):
    """Level, prompt and image to the model's width."""

    def __init__(self, arch: WanArch) -> None:
        super().__init__()
        self._freq_dim = arch.freq_dim
        self.time_embedder = _Mlp(arch.freq_dim, arch.dim)
        self.time_proj = nn.Linear(arch.dim, 6 * arch.dim)
        self.text_embedder = _Mlp(arch.text_dim, arch.dim, gelu_tanh)
        if arch.image_dim is not None:
            self.image_embedder = _ImageEmbedder(arch.image_dim, arch.dim, arch.image_positions)

    def levels(self, timesteps_R: Tensor) -> tuple[Tensor, Tensor]:
        """Of each level: what the head reads, and the six rows that layers read."""
        embedding_RD = self.time_embedder(_sinusoid(timesteps_R, self._freq_dim))
        rows_R6D = rearrange(self.time_proj(silu(embedding_RD)), "r (k d) -> r k d", k=6)
        return embedding_RD, rows_R6D


class _Mlp(nn.Module):
    """Linear, activation, Linear; named `linear_1` and `linear_2`."""

    def __init__(self, width: int, dim: int, activation: Callable[[Tensor], Tensor] = silu) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, dim)
        self.linear_2 = nn.Linear(dim, dim)
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(self._activation(self.linear_1(x)))
        return y


class _ImageEmbedder(nn.Module):
    """CLIP tokens, with a learned position each where first and last frame must be told apart."""

    def __init__(self, width: int, dim: int, positions: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.ff = FeedForward(width, width, dim, gelu)
        self.norm2 = nn.LayerNorm(dim)
        self.pos_embed = (
            None if positions is None else nn.Parameter(torch.zeros(1, positions, width))
        )

    def forward(self, image_BND: Tensor) -> Tensor:
        if self.pos_embed is not None:
            image_BND = image_BND + self.pos_embed
        y_BND = self.ff(affine_norm(image_BND, self.norm1))
        return affine_norm(y_BND, self.norm2)


def _sinusoid(timesteps_R: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of geometrically falling frequencies; angles in float64."""
    pairs, device = width // 2, timesteps_R.device
    frequencies = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
    angles = timesteps_R.double()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()
