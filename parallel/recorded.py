"""Training on one GPU at the GPU's pace: a step is recorded once for each shape, and replayed.

A small model's step is thousands of kernels that take less time than it takes to ask for them. A
recorded step is asked for as one (a CUDA graph): batches are copied to where it reads them, and it
leaves its loss where it always does.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .ranks import Ranks
from .training import AdamW, Stepped, WholeEngine, set_rate

_PLAIN = 2  # steps of each shape, in which torch compiles, chooses kernels and makes its state


class RecordedEngine(WholeEngine):
    """For models whose step follows from the shapes of its batch: it never waits for the GPU."""

    def __init__(self, model: nn.Module, adamw: AdamW, ranks: Ranks, dtype: torch.dtype) -> None:
        super().__init__(model, replace(adamw, recorded=True), ranks, dtype)
        model.train()  # in which a model keeps what recorded steps read
        self._stream = torch.cuda.Stream(ranks.device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()  # all share it, as one runs at a time
        self._plain: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}

    def step(self, batch: Mapping[str, Tensor], learning_rate: float) -> Stepped:
        shapes = tuple((name, x.shape) for name, x in batch.items())
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # all of it: what a graph sees has one history
            set_rate(self._optimizer, learning_rate)
            loss, norm = self._take(shapes, batch)
            stepped = Stepped(loss=loss.item(), figures={}, grad_norm=norm.item())
        torch.cuda.current_stream().wait_stream(self._stream)
        return stepped

    def _take(self, shapes: Hashable, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if shapes in self._recorded:
            return self._recorded[shapes].replay(batch)
        loss, figures, norm = self.move(batch)
        assert not figures, "a figure that is read would wait for the GPU"
        self._plain[shapes] += 1
        if self._plain[shapes] == _PLAIN:
            result = loss.clone(), norm.clone()
            del loss, norm  # and the graph of autograd behind them
            self._recorded[shapes] = _Recorded(self, batch, self._pool, self._stream)
            return result
        return loss, norm


class _Recorded:
    """One step for batches of some shapes."""

    def __init__(
        self,
        engine: WholeEngine,
        batch: Mapping[str, Tensor],
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        self._batch = {name: x.clone() for name, x in batch.items()}
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool, stream):
            self._loss, _, self._norm = engine.move(self._batch)

    def replay(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        for name, x in batch.items():
            self._batch[name].copy_(x)
        self._graph.replay()
        return self._loss, self._norm
