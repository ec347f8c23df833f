"""DeepSpeed's ZeRO: an engine that spreads a model's optimiser state over ranks."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .ranks import Ranks
from .training import AdamW, Lowered, Stepped, set_rate, trained

_TAG = "zero"


class ZeroEngine:
    """Stage 1 spreads the optimiser's state, 2 the gradients too, 3 the weights too.

    Weights, gradients and what is sent are float32. One a process, which must have joined the
    others, if there are any, and have set DS_ACCELERATOR (cpu or cuda) and LOCAL_RANK, which
    DeepSpeed reads when it is imported and when it starts.
    """

    def __init__(
        self, model: nn.Module, adamw: AdamW, ranks: Ranks, dtype: torch.dtype, stage: int
    ) -> None:
        deepspeed = _quiet_deepspeed()
        self._deepspeed, self._ranks, self._stage = deepspeed, ranks, stage
        self._trained = trained(model)
        self._engine, *_ = deepspeed.initialize(
            model=Lowered(model, dtype, keep_casts=stage < 3),
            optimizer=adamw.build(self._trained),
            config=_config(stage, adamw.clip),
            dist_init_required=False,
        )

    def step(self, batch: Mapping[str, Tensor], learning_rate: float) -> Stepped:
        loss, figures = self._engine(**batch)
        self._engine.backward(loss)
        set_rate(self._engine.optimizer, learning_rate)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        return Stepped(loss=loss.item(), figures=figures, grad_norm=norm)

    def weights(self) -> list[Tensor]:
        if self._stage == 3:
            local = self._deepspeed.utils.safe_get_local_fp32_param
            return [local(parameter) for parameter in self._trained]
        return [parameter.data for parameter in self._trained] if self._ranks.is_first else []

    def whole(self, shares: Sequence[Tensor]) -> list[Tensor]:
        if self._stage < 3:
            return list(shares)
        pieces: list[tuple[Tensor, Any]] = list(zip(shares, self._trained, strict=True))
        return [
            _gather(share, self._ranks.num)[: cut.ds_numel].view(cut.ds_shape)
            for share, cut in pieces
        ]

    def save(self, folder: Path) -> None:
        self._engine.save_checkpoint(
            str(folder), tag=_TAG, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> None:
        self._engine.load_checkpoint(
            str(folder), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False
        )


def check_deepspeed() -> None:
    if find_spec("deepspeed") is None:
        raise ValueError(
            "run.zero_stage spreads the training's state with DeepSpeed, which is not installed; "
            "install it with pip install -e '.[train]' in the checkout, or set run.zero_stage=0"
        )


def _quiet_deepspeed() -> Any:
    """Without its chatter, and without the operation it would compile on a CPU, for inference."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):  # torch, about its callers
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # which its import has set
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _config(stage: int, clip: float) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # batches are ours; DeepSpeed only counts them
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, which needs no compiler
    }


def _gather(share: Tensor, num: int) -> Tensor:
    flat = share.flatten()
    if num == 1:
        return flat
    parts = [torch.empty_like(flat) for _ in range(num)]
    dist.all_gather(parts, flat)
    return torch.cat(parts)
