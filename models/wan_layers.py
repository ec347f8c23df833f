"""One layer of a Wan-shaped DiT and the attention in it, with the checkpoint's parameter names.

B batch, L tokens, S keys, D width, H heads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..kernels.attention import attend_causal, attend_dense
from ..kernels.norm import affine_norm, gated_residual, norm_modulate, rms_norm
from ..kernels.rope import rms_norm_rotate, rotate
from .arch import WanArch
from .protocol import AttendTokens, DiTState, LayerCache, WindowShape

# how a window's tokens see each other: the layer; queries, keys and values, each B L H D, of which
# queries and keys are normalised and not rotated
AttendWindow = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_TOKENS_AT_ONCE = 256  # through a feed-forward on a CPU
_GELU = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Rotary:
    """Tables that turn a window's tokens, alone and followed by those of its context."""

    own_LC: Tensor
    all_LC: Tensor


@dataclass(frozen=True)
class WholeWindow:
    """A window of which all tokens are here sees itself, and what a cache brings."""

    shape: WindowShape
    rotary: Rotary
    cache: LayerCache | None
    attend_tokens: AttendTokens | None = None  # none: every token to every other

    def __call__(self, layer: int, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        table_LC = self.rotary.own_LC
        q_BLHD = rotate(q_BLHD, table_LC)
        if self.cache is not None:
            self.cache.write(layer, k_BLHD, v_BLHD)
            if (extra := self.cache.read(layer)) is not None:
                k_BLHD, v_BLHD = (
                    torch.cat(pair, dim=1) for pair in zip((k_BLHD, v_BLHD), extra, strict=True)
                )
                table_LC = self.rotary.all_LC
        return self.attend(layer, q_BLHD, rotate(k_BLHD, table_LC), v_BLHD)

    def attend(self, layer: int, q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
        """Of queries and keys that are turned."""
        if causal := self.shape.causal_latents:
            assert k_BLHD.shape[1] == q_BLHD.shape[1], "causal runs take no keys from elsewhere"
            tokens = causal * self.shape.height * self.shape.width
            return attend_causal(q_BLHD, k_BLHD, v_BLHD, tokens)
        if self.attend_tokens is not None:
            return self.attend_tokens(layer, q_BLHD, k_BLHD, v_BLHD)
        return attend_dense(q_BLHD, k_BLHD, v_BLHD)


class FeedForward(nn.Module):
    """Linear, activation, Linear; named `net.0.proj` and `net.2`."""

    def __init__(
        self, width: int, inner: int, out: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        first = nn.ModuleDict({"proj": nn.Linear(width, inner)})
        self.net = nn.ModuleDict({"0": first, "2": nn.Linear(inner, out)})
        self._activation = activation

    def forward(self, x_BLD: Tensor) -> Tensor:
        if not _is_plain(x_BLD):
            return self._both(x_BLD)
        # on a CPU, float32 intermediates of all tokens are fresh memory in every layer: 5%
        runs = torch.split(x_BLD, _TOKENS_AT_ONCE, dim=-2)
        return torch.cat([self._both(run_BLD) for run_BLD in runs], dim=-2)

    def _both(self, x: Tensor) -> Tensor:
        y: Tensor = self.net["2"](self._activation(self.net["0"]["proj"](x)))  # type: ignore[index]
        return y


def gelu_tanh(x: Tensor) -> Tensor:
    if not _is_plain(x):
        return gelu(x, approximate="tanh")
    # (1 + tanh(u)) / 2 is sigmoid(2 u), which torch has on a CPU at three times the speed
    u = torch.addcmul(x.new_tensor(2 * _GELU), x, x, value=2 * _GELU * 0.044715)
    return u.mul_(x).sigmoid_().mul_(x)


def _is_plain(x: Tensor) -> bool:
    """In float32 on a CPU, and nothing is learnt."""
    return not (x.is_cuda or x.dtype != torch.float32 or torch.is_grad_enabled())


class Attention(nn.Module):
    """Projections and norms of queries, keys and values; q and k are normalised over all heads."""

    def __init__(self, arch: WanArch, image: bool) -> None:
        super().__init__()
        dim = arch.dim
        self.num_heads = arch.num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleDict({"0": nn.Linear(dim, dim)})
        self.norm_q = nn.RMSNorm(dim, arch.eps)
        self.norm_k = nn.RMSNorm(dim, arch.eps)
        if image:
            self.add_k_proj = nn.Linear(dim, dim)
            self.add_v_proj = nn.Linear(dim, dim)
            self.norm_added_k = nn.RMSNorm(dim, arch.eps)

    def queries(self, x_BLD: Tensor) -> Tensor:
        return self.heads(rms_norm(self.to_q(x_BLD), self.norm_q))

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys and values, not yet split into heads."""
        return rms_norm(self.to_k(x_BSD), self.norm_k), self.to_v(x_BSD)

    def turned(self, x_BLD: Tensor, table_LC: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised and turned to their places."""
        q_BLHD, k_BLHD = (
            rms_norm_rotate(project(x_BLD), norm, table_LC, self.num_heads)
            for project, norm in ((self.to_q, self.norm_q), (self.to_k, self.norm_k))
        )
        return q_BLHD, k_BLHD

    def image_keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm(self.add_k_proj(x_BSD), self.norm_added_k), self.add_v_proj(x_BSD)

    def heads(self, x_BLD: Tensor) -> Tensor:
        return rearrange(x_BLD, "b l (h d) -> b l h d", h=self.num_heads)

    def out(self, y_BLHD: Tensor) -> Tensor:
        y: Tensor = self.to_out["0"](y_BLHD.flatten(-2))
        return y


def scale_shift_table(num_rows: int, dim: int) -> nn.Parameter:
    """Added to what each level projects to; where nothing is drawn, nothing is imported: numbers
    for the meta device load torch's compiler, two seconds in every process that builds a slice."""
    table_1RD = torch.empty(1, num_rows, dim)
    return nn.Parameter(table_1RD if table_1RD.is_meta else table_1RD.normal_().div_(dim**0.5))


class Layer(nn.Module):
    """Self-attention, attention to the prompt (and image), feed-forward."""

    def __init__(self, arch: WanArch) -> None:
        super().__init__()
        dim = arch.dim
        self._eps = arch.eps
        self.attn1 = Attention(arch, image=False)
        self.attn2 = Attention(arch, image=arch.image_dim is not None)
        self.norm2 = nn.LayerNorm(dim, arch.eps)
        self.ffn = FeedForward(dim, arch.ffn_dim, dim, gelu_tanh)
        self.scale_shift_table = scale_shift_table(6, dim)

    def forward(self, state: DiTState, index: int, attend_window: AttendWindow) -> Tensor:
        x = state.tokens_BLD
        rows_R6D = self.scale_shift_table.float() + state.modulation.rows_R6D
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows_R6D.unbind(1)
        levels_BF = state.modulation.index_BF
        y = norm_modulate(x, scale, shift, levels_BF, self._eps)
        x = gated_residual(x, self._attend_window(y, index, attend_window), gate, levels_BF)
        x = x + self._attend_prompt(affine_norm(x, self.norm2), state)
        y = self.ffn(norm_modulate(x, ffn_scale, ffn_shift, levels_BF, self._eps))
        return gated_residual(x, y, ffn_gate, levels_BF)

    def _attend_window(self, x_BLD: Tensor, index: int, attend_window: AttendWindow) -> Tensor:
        attn = self.attn1
        if isinstance(attend_window, WholeWindow) and attend_window.cache is None:
            q, k = attn.turned(x_BLD, attend_window.rotary.own_LC)
            return attn.out(attend_window.attend(index, q, k, attn.heads(attn.to_v(x_BLD))))
        k, v = (attn.heads(y) for y in attn.keys_values(x_BLD))
        return attn.out(attend_window(index, attn.queries(x_BLD), k, v))

    def _attend_prompt(self, x_BLD: Tensor, state: DiTState) -> Tensor:
        attn = self.attn2
        q = attn.queries(x_BLD)
        k, v = (attn.heads(y) for y in attn.keys_values(state.text_BSD))
        y = attend_dense(q, k, v)
        if state.image_BND is not None:
            k, v = (attn.heads(y) for y in attn.image_keys_values(state.image_BND))
            y = y + attend_dense(q, k, v)
        return attn.out(y)
