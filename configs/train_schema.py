"""Everything that can be asked of a training run, one frozen group of fields per owner.

A run is a YAML file in train/ that names only what differs from these defaults.
"""

from dataclasses import dataclass, field

from .checks import check_given, check_name, check_range, check_read
from .train_small import ENCODER_READS, MANY, DitTraining, LiveTraining, VaeTraining

_READS = {  # by recipe: the groups that it reads, of those that not all do
    "vae": ("vae",),
    "dit": ("dit",),
    "live": ("live",),
    "finetune": ("finetune", "data"),
}
RECIPES = tuple(_READS)
OPTIMIZERS = ("adamw", "muon")
_METHOD_READS = {"lora": ("rank", "alpha", "export"), "full": ()}
METHODS = tuple(_METHOD_READS)
EXPORTS = ("adapter", "merged")
TRAIN_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives and what it runs on."""

    output: str = ""  # folder of checkpoints, log, pictures and the model; empty: runs/<recipe>
    seed: int = 0
    device: str = "auto"  # auto: cuda where there is one, else cpu
    dtype: str = "bfloat16"  # of the arithmetic where autocast lowers it; weights stay float32
    num_processes: int = 1  # on this machine; each draws batches of its own
    threads: int = 1  # of each process, on a CPU
    workers: int = 0  # processes beside each, that make its batches and clips; 0: it makes them
    sequence_ranks: int = 1  # consecutive processes that share every window's tokens
    zero_stage: int = 0  # 0: everything whole on each process; 1 to 3: spread by DeepSpeed

    def __post_init__(self) -> None:
        check_name("run.dtype", self.dtype, TRAIN_DTYPES, "the training")
        check_range("run.seed", self.seed, 0, 2**63 - 1, "is no seed")
        for name in ("num_processes", "threads", "sequence_ranks"):
            value = getattr(self, name)
            check_range(f"run.{name}", value, 1, 1024, "leaves nothing to compute with")
        check_range("run.workers", self.workers, 0, 1024, "makes no batches")
        check_range("run.zero_stage", self.zero_stage, 0, 3, "is no stage of ZeRO")
        if self.num_processes % self.sequence_ranks:
            raise ValueError(
                f"run.sequence_ranks={self.sequence_ranks} does not divide "
                f"run.num_processes={self.num_processes}, so some would have no partner; set it to "
                "a divisor"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(
                f"run.device={self.device} is no device we can train on; "
                "set it to auto, cpu or cuda"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """A warm-up, then a cosine down to a share of the learning rate."""

    kind: str = "adamw"  # muon: for layers' matrices and convolutions; else AdamW at half the rate
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    final: float = 0.02  # of the learning rate, at the last step
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0
    clip: float = 1.0  # the gradient's largest norm
    ema: float = 0.998  # of the averaged weights that are shown and exported; 0: the last weights

    def __post_init__(self) -> None:
        check_name("optimizer.kind", self.kind, OPTIMIZERS, "the training")
        check_range("optimizer.learning_rate", self.learning_rate, 1e-12, 10, "learns nothing")
        check_range("optimizer.warmup", self.warmup, 0, MANY, "is no number of steps")
        check_range("optimizer.clip", self.clip, 1e-12, 1e12, "leaves no gradient")
        check_range("optimizer.weight_decay", self.weight_decay, 0, 10, "lets weights grow")
        check_range("optimizer.final", self.final, 0, 1, "is no share of the learning rate")
        for name in ("beta1", "beta2", "ema"):
            value = getattr(self, name)
            check_range(f"optimizer.{name}", value, 0, 0.999999, "keeps nothing of what is new")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How often the run says and saves what it does; none of this changes the model."""

    log_every: int = 20  # steps
    sheet_every: int = 500
    save_every: int = 500
    save_minutes: float = 10.0  # whichever comes first

    def __post_init__(self) -> None:
        for name in ("log_every", "sheet_every", "save_every"):
            check_range(f"report.{name}", getattr(self, name), 1, MANY, "would never come round")
        check_range("report.save_minutes", self.save_minutes, 1e-3, MANY, "would never come round")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Clips for `finetune`: videos, and beside each a .txt file with its caption."""

    folder: str = ""
    cache: str = "~/.cache/longreel/train"  # of encoded clips, by content
    height: int = 480
    width: int = 832
    frames: int = 81  # the first of each video

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 32 or value % 16:
                raise ValueError(
                    f"data.{name}={value} cannot be cut into whole latents and tokens; set it to "
                    "a multiple of 16 (32 for models whose latents are 16 pixels) from 32 up"
                )
        check_given("data.cache", self.cache, "encoded clips have no folder")
        if self.frames < 1 or self.frames % 4 != 1:
            raise ValueError(
                f"data.frames={self.frames} does not end with a latent; set it to 4n + 1"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A Wan-shaped checkpoint that learns from clips."""

    checkpoint: str = ""  # folder or hub id with transformer, VAE and text encoder
    arch: str = "wan2.1-t2v-1.3b"  # a name in models/arch.py; the checkpoint must agree with it
    method: str = "lora"
    rank: int = 16  # of each low-rank sum
    alpha: float = 16.0  # its weight is alpha / rank
    export: str = "adapter"  # of lora: the sums alone, or merged into the transformer
    clips: int = 1  # of a batch, on each process
    shift: float = 5.0  # of the levels drawn, towards noise
    drop_prompt: float = 0.1  # share of clips learnt without their caption, for guidance

    def __post_init__(self) -> None:
        check_name("finetune.method", self.method, METHODS, "the training")
        check_name("finetune.export", self.export, EXPORTS, "the training")
        check_range("finetune.rank", self.rank, 1, 4096, "leaves nothing to learn")
        check_range("finetune.alpha", self.alpha, 1e-6, 1e6, "leaves nothing to learn")
        check_range("finetune.clips", self.clips, 1, 4096, "leaves no clip to learn from")
        check_range("finetune.shift", self.shift, 0.01, 100, "leaves one level to learn")
        check_range("finetune.drop_prompt", self.drop_prompt, 0, 1, "is no share")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    summary: str = ""  # one line about what is trained
    recipe: str = "vae"  # what is trained, and by which loss; its group below has its settings
    steps: int = 1000
    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    vae: VaeTraining = field(default_factory=VaeTraining)
    dit: DitTraining = field(default_factory=DitTraining)
    live: LiveTraining = field(default_factory=LiveTraining)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_name("recipe", self.recipe, RECIPES, "the training")
        if self.optimizer.kind == "muon" and self.run.zero_stage:
            raise ValueError(
                "optimizer.kind=muon moves whole matrices, which run.zero_stage="
                f"{self.run.zero_stage} cuts up; set optimizer.kind=adamw or run.zero_stage=0"
            )
        check_range("steps", self.steps, 1, MANY, "trains nothing")
        if self.recipe != "finetune" and self.run.sequence_ranks > 1:
            raise ValueError(
                f"run.sequence_ranks={self.run.sequence_ranks} shares the tokens of a DiT, and "
                f"recipe={self.recipe} has none that it cuts; set it to 1"
            )
        if self.recipe == "finetune" and not (self.finetune.checkpoint and self.data.folder):
            raise ValueError(
                f"recipe=finetune with finetune.checkpoint={self.finetune.checkpoint} and "
                f"data.folder={self.data.folder} has nothing to start or to learn from; set both"
            )
        check_given("run.output", self.run.output or "runs", "the run has no folder")
        check_read("recipe", self, _READS)

    def check_asked(self) -> None:
        """ValueError for what is set and read by nobody. Asked of runs that begin: one that was
        begun when it was let pass goes on."""
        check_read("finetune.method", self.finetune, _METHOD_READS)
        check_read("vae.encoder", self.vae, ENCODER_READS)
        if self.dit.pattern and self.dit.one_level != DitTraining.one_level:
            raise ValueError(
                f"dit.one_level={self.dit.one_level} would be ignored, as dit.pattern="
                f"{self.dit.pattern} is that of every window; leave one of them out"
            )
