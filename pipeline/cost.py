"""What a task takes on a stage, in seconds and bytes: the simulator's model of a machine."""

import math
from dataclasses import dataclass, field

from ..models.arch import ModelArch, WanArch
from ..parallel.split import split_layers
from ..parallel.tasks import Task

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long work takes. All samples of a pass are counted, all layers of a stage."""

    task: float = 0.0  # per pass of a task and stage, however small
    token: float = 0.0  # one token through one layer, attention's pairs apart
    pair: float = 0.0  # one query with one key in one layer
    embed_token: float = 0.0
    head_token: float = 0.0
    window: float = 0.0  # of a task at the first stage: its latents put together
    step: float = 0.0  # of a task at the last stage: the solver
    copy: float = 0.0  # a byte into a link or out of it, where the stage itself does that
    decode_latent: float = 0.0
    hop: float = 0.0  # from one stage to the next, before the first byte arrives
    byte: float = 0.0  # over the link: one over its bandwidth


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """How large things are."""

    token: int = 0  # on its way between two stages
    window: int = 0  # a latent of a window on its way to the unconditional branch's stages
    text: int = 0  # the prompt that goes with it
    cached_token: int = 0  # its key and value in one layer
    latent: int = 0
    solver: int = 0  # what a solver remembers of a latent
    layer: int = 0  # weights
    embed: int = 0
    head: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One model on one kind of device. The defaults are the unit: a slot per stage and task."""

    num_layers: int
    tokens_per_latent: int = 1
    passes: int = 1  # of a task, one after the other: two where one chain runs both branches
    samples: int = 1  # in a pass: two where both branches are one batch
    branches: int = 1  # chains: two where each branch of guidance has one
    frames_per_latent: int = 4
    seconds: Seconds = field(default_factory=lambda: Seconds(task=1.0))
    sizes: Bytes = field(default_factory=Bytes)

    def layer_seconds(self, task: Task) -> float:
        """One layer of a task's window, in one pass."""
        queries = task.num_latents * self.tokens_per_latent
        cached = task.num_cached * self.tokens_per_latent
        s = self.seconds
        return self.samples * queries * (s.token + (queries + cached) * s.pair)

    def split(self, num_stages: int, task: Task) -> list[range]:
        """The layers of each stage, even in what they take of this task with embedding and head."""
        layer = self.layer_seconds(task)
        if not layer:
            return split_layers(self.num_layers, num_stages)
        tokens = self.samples * task.num_latents * self.tokens_per_latent
        embed, head = self.seconds.embed_token * tokens, self.seconds.head_token * tokens
        return split_layers(self.num_layers, num_stages, embed=embed / layer, head=head / layer)

    def pass_seconds(self, task: Task, passing: int, layers: range) -> float:
        """One pass of a task on the stage that has these layers."""
        s, first, last = self.seconds, layers.start == 0, layers.stop == self.num_layers
        tokens = self.samples * task.num_latents * self.tokens_per_latent
        ends = 0.0
        if first:
            ends += tokens * s.embed_token + (s.window if passing == 0 else 0.0)
        if last and not task.commit:
            ends += tokens * s.head_token + (s.step if passing + 1 == self.passes else 0.0)
        copied = self.activation_bytes(task) * ((not first) + (not last))
        return s.task + len(layers) * self.layer_seconds(task) + ends + copied * s.copy

    def weights_bytes(self, layers: range) -> int:
        ends = self.sizes.embed if layers.start == 0 else 0
        ends += self.sizes.head if layers.stop == self.num_layers else 0
        return len(layers) * self.sizes.layer + ends

    def activation_bytes(self, task: Task) -> int:
        """What one stage hands to the next, of one pass."""
        return self.samples * task.num_latents * self.tokens_per_latent * self.sizes.token

    def window_bytes(self, task: Task) -> int:
        """What the first stage hands to the unconditional branch's."""
        return task.num_latents * self.sizes.window + self.sizes.text

    def prediction_bytes(self, task: Task) -> int:
        """What the unconditional branch's last stage hands back."""
        return 0 if task.commit else task.num_latents * self.sizes.latent


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A device and its links in round numbers, for a machine that is not at hand."""

    flops: float  # of matrix products a second
    bytes_per_s: float  # between two stages
    task_s: float = 0.0005  # around the kernels of one task


def layer_parameters(arch: WanArch) -> int:
    dim = arch.dim
    linear = dim * dim + dim
    attention = 4 * linear + 2 * dim
    image = 2 * linear + dim if arch.image_dim is not None else 0
    ffn = 2 * dim * arch.ffn_dim + arch.ffn_dim + dim
    return 2 * attention + image + ffn + 2 * dim + 6 * dim


def embed_parameters(arch: WanArch) -> int:
    """Patches, levels and prompts; without the small parts that read pictures and frame rates."""
    dim = arch.dim
    patches = arch.in_channels * math.prod(arch.patch) * dim + dim
    texts = arch.text_dim * dim + dim + dim * dim + dim
    levels = arch.freq_dim * dim + dim + 7 * (dim * dim + dim)
    return patches + texts + levels


def head_parameters(arch: WanArch) -> int:
    outputs = arch.out_channels * math.prod(arch.patch)
    return arch.dim * outputs + outputs + 2 * arch.dim


def token_flops(arch: WanArch, text_len: int) -> int:
    """Of one token in one layer, without the keys and values made of the prompt once a window."""
    dim = arch.dim
    return 2 * (6 * dim * dim + 2 * dim * arch.ffn_dim) + text_len * pair_flops(arch)


def pair_flops(arch: WanArch) -> int:
    """Of one query with one key: the product, and its share of a value."""
    return 4 * arch.dim


def estimate_seconds(arch: WanArch, text_len: int, speed: Speed) -> Seconds:
    """From the products each part multiplies out, at the speed that is given."""
    patch = math.prod(arch.patch)
    return Seconds(
        task=speed.task_s,
        token=token_flops(arch, text_len) / speed.flops,
        pair=pair_flops(arch) / speed.flops,
        embed_token=2 * arch.in_channels * patch * arch.dim / speed.flops,
        head_token=2 * arch.out_channels * patch * arch.dim / speed.flops,
        byte=1 / speed.bytes_per_s,
    )


def model_cost(
    arch: ModelArch,
    *,
    height: int,
    width: int,
    dtype: str,
    passes: int,
    seconds: Seconds,
    samples: int = 1,
    branches: int = 1,
) -> Cost:
    """A model's sizes at a picture size, with measured or estimated times."""
    dit, stride = arch.dit, arch.vae.space_stride
    _, patch_height, patch_width = dit.patch
    rows, columns = height // stride, width // stride
    size = BYTES[dtype]
    latent = 4 * dit.out_channels * rows * columns
    return Cost(
        num_layers=dit.num_layers,
        tokens_per_latent=(rows // patch_height) * (columns // patch_width),
        passes=passes,
        samples=samples,
        branches=branches,
        frames_per_latent=arch.vae.time_stride,
        seconds=seconds,
        sizes=Bytes(
            token=dit.dim * size,
            window=4 * dit.in_channels * rows * columns,
            text=arch.text_len * dit.text_dim * size,
            cached_token=2 * dit.dim * size * passes * samples,
            latent=latent,
            solver=3 * latent,  # the last sample, and two velocities
            layer=layer_parameters(dit) * size * arch.num_experts,
            embed=embed_parameters(dit) * size * arch.num_experts,
            head=head_parameters(dit) * size * arch.num_experts,
        ),
    )
