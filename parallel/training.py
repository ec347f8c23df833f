"""What the training loop asks of an engine, and the engine that keeps everything on every rank."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .muon import Muon, is_matrix
from .ranks import Ranks

_FILE = "weights.pt"


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """The optimiser, but for its learning rate, which every step is given."""

    beta1: float
    beta2: float
    weight_decay: float
    clip: float  # the gradient's largest norm
    muon: bool = False  # matrices and convolutions are moved by Muon, at twice the others' rate
    recorded: bool = False  # steps are replayed, on a GPU: they read their rate there

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
        betas, recorded = (self.beta1, self.beta2), self.recorded
        return torch.optim.AdamW(
            parameters, 0.0, betas, weight_decay=self.weight_decay, capturable=recorded
        )

    def build_for(self, model: nn.Module) -> "Optimizers":
        """AdamW for everything, or for all that Muon is not made for."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        optimizers = self._with_muon(named) if self.muon else [self.build([p for _, p in named])]
        both = Optimizers(optimizers)
        if self.recorded:
            for group in both.param_groups:
                group["lr"] = torch.zeros((), device=named[0][1].device)
        return both

    def _with_muon(self, named: Sequence[tuple[str, nn.Parameter]]) -> list[Any]:
        matrices = [p for name, p in named if is_matrix(name, p)]
        others = [p for name, p in named if not is_matrix(name, p)]
        muon = Muon(matrices, self.weight_decay)
        if not others:  # low-rank sums are matrices all
            return [muon]
        adamw = self.build(others)
        for group in adamw.param_groups:
            group["share"] = 0.5
        return [muon, adamw]


class Optimizers:
    """Some optimisers, each with parameters of its own, as one."""

    def __init__(self, each: Sequence[Any]) -> None:
        self._each = each

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for one in self._each for group in one.param_groups]

    def zero_grad(self) -> None:
        for one in self._each:
            one.zero_grad()

    def step(self) -> None:
        for one in self._each:
            one.step()

    def state_dict(self) -> list[Any]:
        return [one.state_dict() for one in self._each]

    def load_state_dict(self, states: Sequence[Any]) -> None:
        """Groups stay as they are here: another kind of device has other kinds of rates."""
        for one, state in zip(self._each, states, strict=True):
            here = one.state_dict()
            own = {"param_groups": here["param_groups"]} if "param_groups" in here else {}
            one.load_state_dict({**state, **own})


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """What one step showed on this rank; the norm is that of the gradient of all ranks."""

    loss: float
    figures: Mapping[str, float]
    grad_norm: float


class Engine(Protocol):
    """Moves the trained weights, and knows where they and their optimiser's state are."""

    def step(self, batch: Mapping[str, Tensor], learning_rate: float) -> Stepped: ...

    def weights(self) -> list[Tensor]:
        """This rank's share of the trained weights, float32, as they are now."""
        ...

    def whole(self, shares: Sequence[Tensor]) -> list[Tensor]:
        """Tensors shared out like `weights()`, put together; every rank must call it.

        On the first rank one for each trained parameter, in their order; elsewhere of no use.
        """
        ...

    def save(self, folder: Path) -> None:
        """Every rank, into one folder."""
        ...

    def load(self, folder: Path) -> None: ...


class Lowered(nn.Module):
    """The model, run in a smaller type; its weights stay as they are."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, keep_casts: bool = True) -> None:
        super().__init__()
        self.model = model
        self._dtype, self._keep_casts = dtype, keep_casts

    def forward(self, **batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        with self._context(next(self.model.parameters()).device.type):
            result: tuple[Tensor, dict[str, float]] = self.model(**batch)
        return result

    def _context(self, device: str) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(device, self._dtype, cache_enabled=self._keep_casts)


class WholeEngine:
    """Weights and optimiser state whole on every rank; gradients are averaged."""

    def __init__(self, model: nn.Module, adamw: AdamW, ranks: Ranks, dtype: torch.dtype) -> None:
        self._run = Lowered(model, dtype)
        self._ranks, self._clip = ranks, adamw.clip
        self._trained = trained(model)
        self._optimizer = adamw.build_for(model)

    def step(self, batch: Mapping[str, Tensor], learning_rate: float) -> Stepped:
        set_rate(self._optimizer, learning_rate)
        loss, figures, norm = self.move(batch)
        return Stepped(loss=loss.item(), figures=figures, grad_norm=norm.item())

    def move(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, float], Tensor]:
        """The step, on the device: loss, figures and the gradient's norm."""
        self._optimizer.zero_grad()
        loss, figures = self._run(**batch)
        loss.backward()
        for parameter in self._trained:
            if parameter.grad is None:  # not used by this batch
                parameter.grad = torch.zeros_like(parameter)
        self._ranks.average([p.grad for p in self._trained if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self._trained, self._clip)
        self._optimizer.step()
        return loss.detach(), figures, norm

    def weights(self) -> list[Tensor]:
        return [parameter.data for parameter in self._trained] if self._ranks.is_first else []

    def whole(self, shares: Sequence[Tensor]) -> list[Tensor]:
        return list(shares)

    def save(self, folder: Path) -> None:
        if self._ranks.is_first:
            state = {"weights": self.weights(), "optimizer": self._optimizer.state_dict()}
            torch.save(state, folder / _FILE)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / _FILE, map_location=self._ranks.device, weights_only=True)
        for parameter, saved in zip(self._trained, state["weights"], strict=True):
            parameter.data.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        rate = learning_rate * group.get("share", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
