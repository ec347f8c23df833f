"""Fields of the trainings of the small models: one group for each recipe."""

from dataclasses import dataclass
from itertools import pairwise

from .checks import check_given, check_range, shown

MANY = 1e9
_SIDE = 96  # pixels of a frame of the world
_LONGEST_CLIP = 10_000  # latents
ENCODER_READS = {"true": ("size", "alike"), "false": ()}  # weights of losses of the latents alone


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
        factors = shown(self.dim_mult)
        if len(self.dim_mult) < 3 or not 1 <= min(self.dim_mult) <= max(self.dim_mult) <= 64:
            raise ValueError(
                f"vae.dim_mult={factors} is no row of at least three factors from 1 to 64: fewer "
                "halve time less than twice, so a latent would not be four frames; set it to such "
                "a row, as [1,2,4]"
            )
        if self.space_stride > _SIDE:
            raise ValueError(
                f"vae.dim_mult={factors} makes latents of {self.space_stride} pixels, and a frame "
                f"has {_SIDE}; give fewer factors, such as [1,2,4]"
            )
        for name in ("things", "edges", "size", "alike"):
            check_range(f"vae.{name}", getattr(self, name), 0, 1e6, "is no weight in a loss")
        check_range("vae.noise", self.noise, 0, 1e3, "is no noise")
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
        if not all(a < b for a, b in pairwise((0, *self.until))):
            raise ValueError(
                f"vae.until={shown(self.until)} leaves a phase without a step; set the steps at "
                "which they end, each larger than the one before, such as [1000,3000]"
            )
        for clips in self.clips:
            check_range("vae.clips", clips, 1, 4096, "leaves no clip to learn from")
        for frames in (*self.frames, *filter(None, self.long_frames)):
            if not 5 <= frames <= 4 * _LONGEST_CLIP or frames % 4 != 1:
                raise ValueError(
                    f"vae.frames or vae.long_frames={frames} does not end with a latent; "
                    "set it to 4n + 1 from 5 up, such as 25"
                )
        for crop in self.crop:
            if not 0 < crop <= _SIDE or crop % self.space_stride:
                raise ValueError(
                    f"vae.crop={crop} is no whole number of latents of a frame of {_SIDE} pixels; "
                    f"set it to a multiple of {self.space_stride} up to {_SIDE}"
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
            check_range(f"dit.{name}", getattr(self, name), 1, MANY, "leaves nothing to learn")
        check_range("dit.grow", self.grow, 0, MANY, "is no number of steps")
        check_range("dit.first", self.first, 0, 1, "is no share")
        check_range("dit.one_level", self.one_level, 0, 1, "is no share")
        check_range("dit.shift", self.shift, 1e-3, 1e3, "is no shift of noise levels")
        check_range("dit.clip_latents", self.clip_latents, 1, _LONGEST_CLIP, "leaves no clip")
        check_given("dit.cache", self.cache, "encoded clips have no folder")
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
            check_range(f"live.{name}", getattr(self, name), 1, MANY, "leaves nothing to learn")
        check_range("live.shift", self.shift, 1e-3, 1e3, "is no shift of noise levels")
        check_range("live.clip_latents", self.clip_latents, 1, _LONGEST_CLIP, "leaves no clip")
        check_given("live.cache", self.cache, "encoded clips have no folder")
        check_range("live.guidance", self.guidance, 1, 100, "steers away from the prompt")
        check_range("live.past_noise", self.past_noise, 0, 1, "is no level of noise")
        down = (1001, *self.timesteps, 0)
        if not self.timesteps or not all(a > b for a, b in pairwise(down)):
            raise ValueError(
                f"live.timesteps={shown(self.timesteps)} is no way from noise to a picture; set "
                "numbers from 1000 to 1, each smaller than the one before, such as "
                "[1000,750,500,250]"
            )
