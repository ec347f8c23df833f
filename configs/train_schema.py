"""Everything that can be asked of a training run, one frozen group of fields per owner.

A run is a YAML file in train/ that names only what differs from these defaults.
"""

import re
from dataclasses import dataclass, field

from .checks import check_name, check_range

RECIPES = ("vae", "dit", "live", "finetune")
OPTIMIZERS = ("adamw", "muon")
METHODS = ("lora", "full")
EXPORTS = ("adapter", "merged")
TRAIN_DTYPES = ("float32", "bfloat16")
_MANY = 1e9


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

    kind: str = (
        "adamw"  # muon: for the matrices of a DiT's layers, AdamW at half the rate for all else
    )
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
        check_range("optimizer.warmup", self.warmup, 0, _MANY, "is no number of steps")
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
            check_range(f"report.{name}", getattr(self, name), 1, _MANY, "would never come round")
        check_range("report.save_minutes", self.save_minutes, 1e-3, _MANY, "would never come round")


@dataclass(frozen=True, kw_only=True)
class VaeTraining:
    """A small VAE of the Wan kind, learnt on clips of the world of shapes."""

    base_dim: int = 32
    z_dim: int = 12
    dim_mult: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    patch: int = 2
    until: tuple[int, ...] = (1_000_000,)  # steps at which the phases end
    clips: tuple[int, ...] = (4,)  # of a batch, on each process, in each phase
    frames: tuple[int, ...] = (17,)
    long_frames: tuple[int, ...] = (0,)  # half of the batches are one such clip; 0: none
    crop: tuple[int, ...] = (64,)  # pixels
    start: str = ""  # folder of a VAE to go on from; empty: random weights
    encoder: bool = True  # is learnt too; false: latents stay what they are
    things: float = 10.0  # how much more a pixel weighs where a thing is
    edges: float = 1.0  # weight of the differences between neighbouring pixels
    size: float = 1e-3  # weight of the latents' mean square
    alike: float = 0.1  # weight of how latents of one frame and of four differ when all is still
    noise: float = 0.1  # on the latents that are decoded
    compiled: bool = False  # by torch, for each shape of a batch; needs a C++ compiler on CPUs

    def __post_init__(self) -> None:
        for name in ("base_dim", "z_dim", "num_res_blocks"):
            check_range(f"vae.{name}", getattr(self, name), 1, 4096, "leaves no model to train")
        if self.patch not in (1, 2):
            raise ValueError(f"vae.patch={self.patch} is no patch we know; set it to 1 or 2")
        if len(self.dim_mult) < 3 or min(self.dim_mult) < 1:
            shown = ",".join(map(str, self.dim_mult))
            raise ValueError(
                f"vae.dim_mult=[{shown}] halves time less than twice, so a latent would not be "
                "four frames; give at least three factors of 1 or more, such as [1,2,4]"
            )
        self._check_phases()
        if not self.encoder and not self.start:
            raise ValueError(
                "vae.encoder=false would keep the latents of random weights; set vae.start to the "
                "folder of a VAE whose latents are to stay"
            )

    def _check_phases(self) -> None:
        columns = ("clips", "frames", "long_frames", "crop")
        for name in columns:
            if len(getattr(self, name)) != len(self.until):
                raise ValueError(
                    f"vae.{name} has {len(getattr(self, name))} values and vae.until has "
                    f"{len(self.until)}, so phases would lack some; give each the same number"
                )
        for frames in (*self.frames, *filter(None, self.long_frames)):
            if frames < 5 or frames % 4 != 1:
                raise ValueError(
                    f"vae.frames or vae.long_frames={frames} does not end with a latent; "
                    "set it to 4n + 1 from 5 up, such as 25"
                )
        for crop in self.crop:
            if not 0 < crop <= 96 or crop % self.space_stride:
                raise ValueError(
                    f"vae.crop={crop} is no whole number of latents of a frame of 96 pixels; "
                    f"set it to a multiple of {self.space_stride} up to 96"
                )

    @property
    def space_stride(self) -> int:
        return int(self.patch * 2 ** (len(self.dim_mult) - 1))


@dataclass(frozen=True, kw_only=True)
class DitTraining:
    """A small DiT and its text encoder, learnt on latents of the world in mixed noise patterns."""

    arch: str = "shapes"  # a name in models/arch.py
    start: str = ""  # folder of a model to go on from; empty: random weights
    vae: str = ""  # folder of the VAE whose latents are learnt
    clips: int = 2048  # of the world, encoded once
    clip_latents: int = 25
    cache: str = "runs/shapes-clips"  # folder of the encoded clips
    latents: int = 96  # of a batch, on each process: short windows make many rows
    shortest: int = 3  # latents of a window
    longest: int = 24
    grow: int = 0  # steps over which windows grow from the shortest to the longest
    first: float = 0.5  # of the batches hold windows that begin their video
    shift: float = 6.0  # of the noise levels, as in sampling
    one_level: float = 0.6  # of the windows that begin their video have one level of noise
    pattern: str = ""  # of the noise, for every window; empty: the mix
    compiled: bool = False  # layers, by torch; needs a C++ compiler on CPUs

    def __post_init__(self) -> None:
        for name in ("clips", "latents", "shortest"):
            check_range(f"dit.{name}", getattr(self, name), 1, _MANY, "leaves nothing to learn")
        check_range("dit.grow", self.grow, 0, _MANY, "is no number of steps")
        check_range("dit.first", self.first, 0, 1, "is no share")
        check_range("dit.one_level", self.one_level, 0, 1, "is no share")
        check_range("dit.shift", self.shift, 1e-3, 1e3, "is no shift of noise levels")
        if not self.shortest <= self.longest < self.clip_latents:
            raise ValueError(
                f"dit.shortest={self.shortest}, dit.longest={self.longest} and dit.clip_latents="
                f"{self.clip_latents} leave no window to cut; set shortest <= longest < "
                "clip_latents, as the first latent of a clip is no window's but the first"
            )


@dataclass(frozen=True, kw_only=True)
class LiveTraining:
    """A causal student of a small DiT: few steps, no guidance."""

    arch: str = "shapes-live"  # a name in models/arch.py
    start: str = ""  # folder of the teacher, which it starts as
    clips: int = 2048  # of the world, encoded once
    clip_latents: int = 25
    cache: str = "runs/shapes-clips"  # folder of the encoded clips
    rows: int = 5  # of a batch, on each process
    chunks: int = 5  # of a window, the sink among them
    timesteps: tuple[int, ...] = (1000, 750, 500, 250)  # it will be asked at, before the shift
    shift: float = 6.0
    guidance: float = 3.0  # that is learnt in
    past_noise: float = 0.15  # the most that a clean past bears, untold
    compiled: bool = False  # layers, and what encodes the clips; needs a C++ compiler on CPUs

    def __post_init__(self) -> None:
        for name in ("clips", "rows", "chunks"):
            check_range(f"live.{name}", getattr(self, name), 1, _MANY, "leaves nothing to learn")
        check_range("live.shift", self.shift, 1e-3, 1e3, "is no shift of noise levels")
        check_range("live.guidance", self.guidance, 1, 100, "steers away from the prompt")
        check_range("live.past_noise", self.past_noise, 0, 1, "is no level of noise")
        if not self.timesteps or not all(0 < timestep <= 1000 for timestep in self.timesteps):
            shown = ",".join(map(str, self.timesteps))
            raise ValueError(
                f"live.timesteps=[{shown}] is no way from noise to a picture; "
                "set numbers from 1000 to 1, such as [1000,750,500,250]"
            )


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
        check_range("steps", self.steps, 1, _MANY, "trains nothing")
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
        if not re.search(r"\S", self.run.output or "runs"):
            raise ValueError("run.output is blank, so the run has no folder; name one")
