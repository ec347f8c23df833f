"""The shapes of the models we know, by name: numbers only, no modules."""

from dataclasses import dataclass, replace

from ..configs.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class WanArch:
    """A Wan-shaped DiT. Field names are ours; those of checkpoints are translated."""

    num_layers: int
    num_heads: int
    head_dim: int = 128
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    image_dim: int | None = None  # width of CLIP tokens, for models that read them
    image_positions: int | None = None  # learned position per CLIP token, for first-and-last-frame
    fps_embedding: bool = False  # SkyReels-V2: one of two learned frame rates
    max_position: int = 1024

    @property
    def dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def head_splits(self) -> tuple[int, int, int]:
        """Rotary channels of a head for time, height and width."""
        side = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * side, side, side


@dataclass(frozen=True, kw_only=True)
class VaeArch:
    """diffusers' AutoencoderKLWan, as far as shapes go."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    space_stride: int = 8
    residual: bool = False
    patch: int | None = None
    time_stride: int = 4  # the first latent is one frame, every further one is this many

    @property
    def decoder_reach(self) -> int:
        """After so many latents a decoder's state and frames depend on none before them.

        A convolution sees two frames back, at the rate it runs at: one a latent, two behind the
        first stage, four behind the second.
        """
        stage = 2 * 2 * (self.num_res_blocks + 1)
        quarters = 4 * (2 + 8 + stage + 2) + 2 * (stage + 2) + (len(self.dim_mult) - 2) * stage + 2
        return -(-quarters // 4)


@dataclass(frozen=True, kw_only=True)
class ModelArch:
    """What one checkpoint holds."""

    dit: WanArch
    vae: VaeArch
    image: str = "none"  # how a first frame enters: none | channels | first-latent
    num_experts: int = 1
    text_len: int = 512
    per_latent_timestep: bool = False  # trained with a timestep per latent
    mixed_levels: bool = False  # trained on windows of many levels, each latent told its own
    window: int = 21  # latents of the videos it was trained on
    causal_latents: int = 0  # trained so that runs of this many latents see no later run
    causal_windows: bool = False  # trained to run with such runs, of any length, or without
    text_parameters: int = 5_680_910_336  # UMT5-XXL
    image_parameters: int = 0
    vae_parameters: int = 126_892_531  # Wan 2.1


_WAN_1_3B = WanArch(num_layers=30, num_heads=12, ffn_dim=8960)
_WAN_14B = WanArch(num_layers=40, num_heads=40, ffn_dim=13824)
_WAN_14B_I2V = replace(_WAN_14B, in_channels=36)  # the picture's latents and where they count
_WAN_14B_CLIP = replace(_WAN_14B_I2V, image_dim=1280)
_VAE_2_1 = VaeArch()
_VAE_2_2 = VaeArch(
    base_dim=160, decoder_base_dim=256, z_dim=48, space_stride=16, residual=True, patch=2
)
_TINY_VAE = VaeArch(base_dim=8, num_res_blocks=1)

_SHAPES = ModelArch(
    dit=WanArch(
        num_layers=8,
        num_heads=3,
        head_dim=64,
        ffn_dim=768,
        in_channels=12,
        out_channels=12,
        text_dim=96,
        freq_dim=128,
    ),
    vae=VaeArch(base_dim=32, z_dim=12, dim_mult=(1, 2, 2), num_res_blocks=1, patch=2),
    text_len=48,
    per_latent_timestep=True,
    mixed_levels=True,
    window=24,
    text_parameters=193_120,
    vae_parameters=2_539_544,
)

ARCHS: dict[str, ModelArch] = {
    "tiny": ModelArch(
        dit=WanArch(num_layers=4, num_heads=2, head_dim=32, ffn_dim=128, text_dim=32),
        vae=_TINY_VAE,
        text_len=64,
        per_latent_timestep=True,
        causal_windows=True,
        text_parameters=33_056,  # of bytes, untrained
        vae_parameters=668_043,
    ),
    "shapes": _SHAPES,
    "shapes-live": replace(_SHAPES, causal_latents=3, window=15),
    "wan2.1-t2v-1.3b": ModelArch(dit=_WAN_1_3B, vae=_VAE_2_1),
    "wan2.1-t2v-14b": ModelArch(dit=_WAN_14B, vae=_VAE_2_1),
    "wan2.1-i2v-14b": ModelArch(
        dit=_WAN_14B_CLIP,
        vae=_VAE_2_1,
        image="channels",
        image_parameters=630_766_080,  # CLIP ViT-H/14
    ),
    "wan2.1-flf2v-14b": ModelArch(
        dit=replace(_WAN_14B_CLIP, image_positions=514),
        vae=_VAE_2_1,
        image="channels",
        image_parameters=630_766_080,  # CLIP ViT-H/14
    ),
    "wan2.2-t2v-a14b": ModelArch(dit=_WAN_14B, vae=_VAE_2_1, num_experts=2),
    "wan2.2-i2v-a14b": ModelArch(dit=_WAN_14B_I2V, vae=_VAE_2_1, image="channels", num_experts=2),
    "wan2.2-ti2v-5b": ModelArch(
        dit=WanArch(num_layers=30, num_heads=24, ffn_dim=14336, in_channels=48, out_channels=48),
        vae=_VAE_2_2,
        image="first-latent",
        per_latent_timestep=True,
        window=31,
        vae_parameters=704_688_668,
    ),
    "skyreels-v2-df-1.3b": ModelArch(
        dit=WanArch(num_layers=30, num_heads=12, ffn_dim=8960, fps_embedding=True),
        vae=_VAE_2_1,
        per_latent_timestep=True,
        window=25,
        causal_windows=True,
    ),
    "skyreels-v2-df-14b": ModelArch(
        dit=_WAN_14B, vae=_VAE_2_1, per_latent_timestep=True, window=25, causal_windows=True
    ),
    "self-forcing-1.3b": ModelArch(
        dit=_WAN_1_3B, vae=_VAE_2_1, per_latent_timestep=True, causal_latents=3
    ),
}


def find_arch(name: str) -> ModelArch:
    """ValueError where none is known by that name."""
    if name in ARCHS:
        return ARCHS[name]
    raise ValueError(
        f"model.arch={name} is no model whose shape is known; {did_you_mean(name, ARCHS)}"
        f"choose one of {', '.join(ARCHS)}"
    )
