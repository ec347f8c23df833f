"""The loop that learns a recipe: steps, averages, figures, pictures, checkpoints."""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from ...configs.errors import first_line, is_memory
from ...configs.files import expand
from ...configs.train_schema import TrainConfig
from ...parallel.ranks import Ranks
from ...parallel.recorded import RecordedEngine
from ...parallel.training import AdamW, Engine, Stepped, WholeEngine, trained
from ..home.durable import written_aside
from .curves import draw_curves
from .ema import Ema, wearing
from .errors import TrainingError
from .feed import made_ahead
from .rates import learning_rate
from .recipe import Batch, Recipe
from .store import RunFolder

_STATE = "state.json"


class Trainer:
    """One rank of a run. All ranks take the same branches: what they decide on is shared first."""

    def __init__(
        self, config: TrainConfig, recipe: Recipe, ranks: Ranks, say: Callable[[str], None]
    ) -> None:
        self._config, self._recipe, self._ranks, self._say = config, recipe, ranks, say
        self.folder = RunFolder(output_folder(config))
        recipe.model.to(ranks.device)
        # stage 3 cuts weights up where they stand, and a sheet is drawn by one rank
        apart = config.run.zero_stage == 3 and ranks.is_first
        self._shown = copy.deepcopy(recipe) if apart else recipe
        self._engine = _engine(config, recipe, ranks)
        self._ema = Ema(self._engine.weights(), config.optimizer.ema)
        self._tally = _Tally()
        self.step = 0
        self._saved_step, self._saved_at = -1, time.monotonic()

    def run(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """To the last step and the export; False when `stopped` ended it, with a checkpoint."""
        self._resume()
        for batch in self._batches():
            if self._take_step(batch, stopped()):
                self._save()
                return False
        self._save()
        self._show(self._export)
        return True

    def _batches(self) -> Iterator[Batch]:
        """Of all steps that are left."""
        rank, num = self._shared_rank()
        steps = range(self.step, self._config.steps)
        make = self._recipe.batch
        return made_ahead(lambda step: make(step, rank, num), steps, self._config.run.workers)

    def _shared_rank(self) -> tuple[int, int]:
        """Among those that see batches of their own, and how many these are."""
        together = self._config.run.sequence_ranks  # these see one batch
        return self._ranks.rank // together, self._ranks.num // together

    def _take_step(self, batch: Batch, stopped: bool) -> bool:
        """One step and what is due after it; whether any rank was asked to stop."""
        config, report = self._config, self._config.report
        rate = learning_rate(config.optimizer, self.step, config.steps)
        here = {name: x.to(self._ranks.device) for name, x in batch.items()}
        seed_step(config.run.seed, self.step, self._shared_rank()[0])
        stepped = self._engine.step(here, rate)
        self._ema.update(self._engine.weights(), self.step)
        self.step += 1
        stop, save = self._share(stepped, stopped)
        self._tally.add(stepped, rate)
        last = self.step == config.steps
        if self.step % report.log_every == 0 or last:
            self._log()
        if self.step % report.sheet_every == 0 or last:
            self._show(self._draw)
        if (self.step % report.save_every == 0 or save) and not (last or stop):
            self._save()
        return stop and not last

    def _share(self, stepped: Stepped, stopped: bool) -> tuple[bool, bool]:
        """Whether to stop, whether to save, on every rank alike; a loss that is lost ends here."""
        bad = not (math.isfinite(stepped.loss) and math.isfinite(stepped.grad_norm))
        late = time.monotonic() - self._saved_at > 60 * self._config.report.save_minutes
        clock = late and self._ranks.is_first
        num_bad, num_stopped, num_late = self._ranks.sum([bad, stopped, clock])
        if num_bad:
            what = "loss" if not math.isfinite(stepped.loss) else "gradient"
            last = self.folder.last()
            where = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingError(
                f"the {what} of step {self.step} is no longer finite, and nothing can be learnt "
                f"from it ({where}); start again in another folder with a lower "
                f"optimizer.learning_rate than {self._config.optimizer.learning_rate:g}, a longer "
                "optimizer.warmup, or run.dtype=float32"
            )
        return num_stopped > 0, num_late > 0

    def _log(self) -> None:
        means = self._tally.means()
        names = [name for name in means if name not in ("learning_rate", "time_s")]
        summed = self._ranks.sum([means[name] for name in names])
        means |= {name: value / self._ranks.num for name, value in zip(names, summed, strict=True)}
        self._tally = _Tally()
        if not self._ranks.is_first:
            return
        self.folder.log({"step": self.step, **means})
        self._say(
            f"step {self.step}/{self._config.steps}  loss {means['loss']:.4f}  "
            f"{means['time_s']:.3g} s a step"
        )

    def _draw(self) -> None:
        with written_aside(self.folder.path / "sheet.png") as part:
            with torch.compiler.set_stance("force_eager"):  # nothing is compiled for a look
                sheet = self._shown.sheet()
            Image.fromarray(sheet).save(part, format="PNG")
        with written_aside(self.folder.path / "curves.png") as part:
            draw_curves(self.folder.lines(), part, f"{self._config.recipe}, step {self.step}")

    def _export(self) -> None:
        try:
            with self.folder.exported() as part:
                self._shown.export(part)
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_memory(error):
                raise
            raise TrainingError(
                f"the model cannot be written to {self.folder.path} ({first_line(error)}); make "
                "room there and run the same command again, which has nothing left but that"
            ) from error

    def _show(self, action: Callable[[], object]) -> None:
        """On the first rank, under the averaged weights."""
        seed_step(self._config.run.seed, 0, 0)  # the same draws on every sheet
        whole = self._engine.whole(self._ema.shares)
        if self._ranks.is_first:
            model = self._shown.model
            with wearing(trained(model), whole), torch.no_grad():
                action()
        self._ranks.wait()

    def _save(self) -> None:
        if self._saved_step == self.step:
            return
        part = self.folder.part(self.step)
        if self._ranks.is_first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            (part / _STATE).write_text(json.dumps({"step": self.step}))
        self._ranks.wait()
        try:
            self._engine.save(part)
            torch.save(self._ema.shares, part / f"ema-{self._ranks.rank}.pt")
        except (OSError, RuntimeError) as error:  # torch has errors of its own for a full disk
            last = self.folder.last()
            raise TrainingError(
                f"the checkpoint of step {self.step} cannot be written to {self.folder.path} "
                f"({first_line(error)}); make room there and run the same command again, which "
                f"goes on from {last or 'the start'}"
            ) from error
        self._ranks.wait()
        if self._ranks.is_first:
            self.folder.finish(self.step)
        self._ranks.wait()
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def _resume(self) -> None:
        last = self.folder.last()
        if last is None:
            return
        try:
            self._load(last)
        except Exception as error:  # of whoever wrote the file that is damaged
            if is_memory(error):
                raise
            raise TrainingError(
                f"the checkpoint {last} cannot be loaded ({first_line(error)}), so the run cannot "
                "go on from it; remove that folder, and the same command goes on from the one "
                "before it, or from the start if there is none"
            ) from error
        if self._ranks.is_first:
            self.folder.forget_after(self.step)
            self._say(f"goes on after step {self.step}, from {last}")

    def _load(self, checkpoint: Path) -> None:
        self.step = self._saved_step = int(json.loads((checkpoint / _STATE).read_text())["step"])
        self._engine.load(checkpoint)
        file = checkpoint / f"ema-{self._ranks.rank}.pt"
        self._ema.load(torch.load(file, map_location=self._ranks.device, weights_only=True))


class _Tally:
    """Means of figures since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count: dict[str, int] = {}
        self._last = time.monotonic()

    def add(self, stepped: Stepped, rate: float) -> None:
        """The time is that since the step before it."""
        now = time.monotonic()
        values = {"loss": stepped.loss, **stepped.figures, "grad_norm": stepped.grad_norm}
        values |= {"learning_rate": rate, "time_s": now - self._last}
        self._last = now
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._count[name] = self._count.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self._count[name] for name, total in self._sums.items()}


def output_folder(config: TrainConfig) -> Path:
    return expand(config.run.output or f"runs/{config.recipe}")


def seed_step(seed: int, step: int, rank: int) -> None:
    """All that torch draws in a step follows from these three, so a resumed run draws the same."""
    (word,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(word) >> 1)


def _engine(config: TrainConfig, recipe: Recipe, ranks: Ranks) -> Engine:
    optimizer = config.optimizer
    adamw = AdamW(
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        weight_decay=optimizer.weight_decay,
        clip=optimizer.clip,
        muon=optimizer.kind == "muon",
    )
    dtype = getattr(torch, config.run.dtype)
    if config.run.zero_stage == 0:
        alone = ranks.num == 1 and ranks.device.type == "cuda"
        engine = RecordedEngine if alone and recipe.recordable else WholeEngine
        return engine(recipe.model, adamw, ranks, dtype)
    from ...parallel.zero import ZeroEngine

    return ZeroEngine(recipe.model, adamw, ranks, dtype, config.run.zero_stage)
