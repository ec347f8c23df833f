"""One layer of a Wan-shaped DiT and the attention in it, with the checkpoint's parameter names.

B batch, L tokens, S keys, D width, H heads.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu

from ..kernels.attention import attend_causal, attend_dense
from ..kernels.norm import affine_norm, gated_residual, norm_modulate, rms_norm
from ..kernels.rope import rotate
from .arch import WanArch
from .protocol import DiTState, LayerCache

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, each B tokens H D

_TOKENS_AT_ONCE = 256  # through a feed-forward on a CPU


@dataclass(frozen=True)
class Rotary:
    """Tables that turn a window's tokens, alone and followed by those of its context."""

    own_LC: Tensor
    all_LC: Tensor


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
        if x_BLD.is_cuda or x_BLD.dtype != torch.float32 or torch.is_grad_enabled():
            return self._both(x_BLD)
        # on a CPU, float32 intermediates of all tokens are fresh memory in every layer: 5%
        runs = torch.split(x_BLD, _TOKENS_AT_ONCE, dim=-2)
        return torch.cat([self._both(run_BLD) for run_BLD in runs], dim=-2)

    def _both(self, x: Tensor) -> Tensor:
        y: Tensor = self.net["2"](self._activation(self.net["0"]["proj"](x)))  # type: ignore[index]
        return y


def gelu_tanh(x: Tensor) -> Tensor:
    return gelu(x, approximate="tanh")


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

    def image_keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return rms_norm(self.add_k_proj(x_BSD), self.norm_added_k), self.add_v_proj(x_BSD)

    def heads(self, x_BLD: Tensor) -> Tensor:
        return rearrange(x_BLD, "b l (h d) -> b l h d", h=self.num_heads)

    def out(self, y_BLHD: Tensor) -> Tensor:
        y: Tensor = self.to_out["0"](y_BLHD.flatten(-2))
        return y


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
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        state: DiTState,
        rotary: Rotary,
        index: int,
        cache: LayerCache | None,
        attend_tokens: Attend = attend_dense,
    ) -> Tensor:
        """`attend_tokens` lets a window's tokens see each other, wherever they are."""
        x = state.tokens_BLD
        rows_R6D = self.scale_shift_table.float() + state.modulation.rows_R6D
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = state.modulation.select(rows_R6D)
        y = norm_modulate(x, scale, shift, self._eps)
        y = self._attend_window(y, state, rotary, index, cache, attend_tokens)
        x = gated_residual(x, y, gate)
        x = x + self._attend_prompt(affine_norm(x, self.norm2), state)
        y = self.ffn(norm_modulate(x, ffn_scale, ffn_shift, self._eps))
        return gated_residual(x, y, ffn_gate)

    def _attend_window(
        self,
        x_BLD: Tensor,
        state: DiTState,
        rotary: Rotary,
        index: int,
        cache: LayerCache | None,
        attend_tokens: Attend,
    ) -> Tensor:
        attn, key_rotary_LC = self.attn1, rotary.own_LC
        q = rotate(attn.queries(x_BLD), rotary.own_LC)
        k_BLD, v_BLD = attn.keys_values(x_BLD)
        if cache is not None:
            cache.write(index, k_BLD, v_BLD)
            if (extra := cache.read(index)) is not None:
                k_BLD, v_BLD = (
                    torch.cat(pair, dim=1) for pair in zip((k_BLD, v_BLD), extra, strict=True)
                )
                key_rotary_LC = rotary.all_LC
        k, v = rotate(attn.heads(k_BLD), key_rotary_LC), attn.heads(v_BLD)
        if causal := state.window.causal_latents:
            assert k.shape[1] == q.shape[1], "causal runs inside a window take no extra keys"
            tokens = causal * state.window.height * state.window.width
            return attn.out(attend_causal(q, k, v, tokens))
        return attn.out(attend_tokens(q, k, v))

    def _attend_prompt(self, x_BLD: Tensor, state: DiTState) -> Tensor:
        attn = self.attn2
        q = attn.queries(x_BLD)
        k, v = (attn.heads(y) for y in attn.keys_values(state.text_BSD))
        y = attend_dense(q, k, v)
        if state.image_BND is not None:
            k, v = (attn.heads(y) for y in attn.image_keys_values(state.image_BND))
            y = y + attend_dense(q, k, v)
        return attn.out(y)
