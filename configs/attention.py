"""The part of the configuration that says which tokens attend to which."""

import math
from dataclasses import dataclass

from .checks import check_name, check_range, check_read, shown

_LISTED = ("tile", "dense_steps", "dense_layers")
_READS = {  # the numbers below, by the builder that reads them
    "dense": (),
    "tile-window": (*_LISTED, "window"),
    "radial": (*_LISTED, "decay"),
    "spatiotemporal": (*_LISTED, "band"),
    "pooled": (*_LISTED, "keep", "mass"),
    "local": (*_LISTED, "radius"),
    "stale": (*_LISTED, "radius", "refresh"),
    "stale-published": (*_LISTED, "radius", "refresh"),
}
BUILDERS = tuple(_READS)
BACKENDS = ("auto", "sdpa", "flash-attn", "triton", "flex")
_DENSE = ("sdpa", "flash-attn")  # of these, what computes no lists

# builder: share of the first steps, and of the first layers, that are published as left dense
DENSE_SHARES = {
    "tile-window": (0.24, 0.0),  # STA: 12 of 50 steps
    "radial": (0.24, 0.02),  # 12 of 50 steps; the first layer
    "spatiotemporal": (0.2, 0.03),
    "stale": (0.3, 0.0),  # Re-ttention: 15 of 50 steps
    "stale-published": (0.3, 0.0),
}
RADII = {"stale": 1, "stale-published": 1}

_LOCAL_RADIUS = 16


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Who attends to whom inside a window. None: as the builder is published."""

    builder: str = "dense"  # how lists of tiles are made; dense: every token sees every other
    backend: str = "auto"  # what computes attention; auto: kernels/choose.py decides
    tile: int = 128  # most tokens of a tile
    dense_steps: float | None = None  # share of the steps, the first, that stay dense
    dense_layers: float | None = None  # share of the layers, the first
    window: tuple[int, ...] = (18, 24, 24)  # tokens in time, height, width (tile-window)
    decay: float = 0.2  # how much narrower than the published law its diagonals are (radial)
    band: float = 0.3  # share of all pairs in a head's band (spatiotemporal)
    keep: float = 0.5  # share of all tiles that a tile keeps (pooled)
    mass: float | None = None  # keep instead what holds so much of the softmax (pooled)
    radius: int | None = None  # tokens round a token that are seen (local, stale)
    refresh: int = 5  # steps from one look at everything to the next (stale)

    def __post_init__(self) -> None:
        check_name("attention.builder", self.builder, BUILDERS)
        check_name("attention.backend", self.backend, BACKENDS)
        check_range("attention.tile", self.tile, 16, 128, "is no tile that kernels work on")
        for name, least, why in (
            ("dense_steps", 0.0, "is no share"),
            ("dense_layers", 0.0, "is no share"),
            ("mass", 1e-6, "is no share that keeps a tile"),
        ):
            check_range(f"attention.{name}", getattr(self, name), least, 1, why)
        for name in ("band", "keep", "decay"):
            check_range(f"attention.{name}", getattr(self, name), 0, 1, "is no share")
        if len(self.window) != 3 or min(self.window) < 1:
            raise ValueError(
                f"attention.window={shown(self.window)} is no box of time, height and width; "
                "set three numbers of tokens, such as [18,24,24]"
            )
        check_range("attention.radius", self.radius, 0, math.inf, "measures nothing")
        check_range("attention.refresh", self.refresh, 1, 1000, "never looks at everything")
        check_read("attention.builder", self, _READS)
        if self.builder == "dense" and self.backend == "flex":
            raise ValueError(
                "attention.backend=flex computes lists of tiles, and attention.builder=dense has "
                "none, so it would be ignored; set attention.builder=local or another, or leave it "
                "out"
            )

    def check_asked(self, before: "AttentionConfig") -> None:
        """As that of Config."""
        if self.mass is not None and self.keep != before.keep:
            raise ValueError(
                f"attention.keep={self.keep} would be ignored, as attention.mass={self.mass} says "
                "how many tiles are kept; leave one of them out"
            )
        listed = self.builder != "dense" and not any(self.dense_shares)
        if listed and self.backend in _DENSE and self.backend != before.backend:
            raise ValueError(
                f"attention.backend={self.backend} would be ignored, as it computes no lists and "
                f"attention.builder={self.builder} leaves no step dense; leave it out, or set "
                "attention.dense_steps above 0"
            )

    @property
    def dense_shares(self) -> tuple[float, float]:
        """Of the first steps, and of the first layers."""
        steps, layers = DENSE_SHARES.get(self.builder, (0.0, 0.0))
        return (
            steps if self.dense_steps is None else self.dense_steps,
            layers if self.dense_layers is None else self.dense_layers,
        )

    @property
    def seen_radius(self) -> int:
        return RADII.get(self.builder, _LOCAL_RADIUS) if self.radius is None else self.radius

    @property
    def order(self) -> str:
        """Of the tokens: the published lists of these are over the raster."""
        return "raster" if self.builder in ("dense", "radial", "spatiotemporal") else "tiles"

    @property
    def keeps_state(self) -> bool:
        """Whether a step uses what an earlier one made of the same block."""
        return self.builder.startswith("stale")

    @property
    def reads_inputs(self) -> bool:
        """Whether lists depend on queries and keys, or on what earlier steps made."""
        return self.builder in ("spatiotemporal", "pooled", "stale", "stale-published")
