"""The part of the configuration that says how one render is spread over devices."""

import math
from dataclasses import dataclass

from .checks import check_given, check_name, check_range, counted

LINKS = ("auto", "nccl", "host")
_BETWEEN = ("place_timeout_s", "transfer_timeout_s", "repairs", "link")  # processes
BACKEND_READS = {"auto": _BETWEEN, "local": (), "ray": _BETWEEN}
BACKENDS = tuple(BACKEND_READS)
CFG = ("batch", "split")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How one render is spread over devices."""

    num_stages: int = 1  # consecutive slices of the DiT's layers
    gpus_per_stage: int = 1  # devices that share the tokens of each stage
    ring: int = 1  # of these, groups round which keys go; inside a group heads are exchanged
    cfg: str = "batch"  # split: each branch of guidance goes through stages of its own
    devices: int = 0  # that the stages share, each with consecutive ones; 0: one per stage
    backend: str = "auto"  # local: stages in this process; ray: actors; auto: as is called for
    address: str = "local"  # of a Ray cluster; local: a private one that ends with the render
    place_timeout_s: float = 60.0  # how long to wait for the devices
    transfer_timeout_s: float = 60.0  # how long a stage may wait for another
    repairs: int = 5  # failures in a row that are borne, without a new block between them
    link: str = "auto"  # nccl: from GPU to GPU; host: through the machines' memory; auto: by device
    calibration: str = "~/.cache/longreel/calibration"  # measured times; empty: layers by estimate

    def __post_init__(self) -> None:
        check_range(
            "parallel.num_stages", self.num_stages, 1, math.inf, "leaves no stage to run on"
        )
        check_name("parallel.cfg", self.cfg, CFG)
        check_name("parallel.backend", self.backend, BACKENDS)
        self._check_shares()
        check_range("parallel.repairs", self.repairs, 0, math.inf, "counts nothing")
        self._check_devices()
        check_name("parallel.link", self.link, LINKS)
        if self.link == "nccl" and self.backend == "local":
            raise ValueError(
                "parallel.link=nccl would be ignored, as parallel.backend=local hands tensors over "
                "in one process; set parallel.backend=ray, or leave it out"
            )
        for name in ("place_timeout_s", "transfer_timeout_s"):
            value = getattr(self, name)
            check_range(f"parallel.{name}", value, 1, 1e6, "is no time to wait for anybody")
        self._check_address()

    @property
    def num_branches(self) -> int:
        """How many chains of `num_stages` stages there are."""
        return 2 if self.cfg == "split" else 1

    @property
    def num_devices(self) -> int:
        """How many devices all stages need."""
        return self.devices or self.num_stages * self.num_branches * self.gpus_per_stage

    def _check_shares(self) -> None:
        each = self.gpus_per_stage
        for name in ("gpus_per_stage", "ring"):
            value = getattr(self, name)
            check_range(f"parallel.{name}", value, 1, 1024, "is no number of devices")
        if each % self.ring:
            raise ValueError(
                f"parallel.ring={self.ring} cannot cut parallel.gpus_per_stage={each} into groups "
                "of one size; "
                + (
                    f"set it to 1 (heads are exchanged), {each} (keys go round), or a divisor "
                    "between (both)"
                    if each > 1
                    else f"set parallel.gpus_per_stage={self.ring}, or leave it out"
                )
            )
        if each > 1 and self.backend == "local":
            raise ValueError(
                f"parallel.gpus_per_stage={each} would be ignored, as parallel.backend=local runs "
                "every stage in this process; set parallel.backend=ray, or leave it out"
            )

    def _check_address(self) -> None:
        check_given("parallel.address", self.address, "there is no cluster to place stages on")
        if self.address != "local" and self.backend == "local":
            raise ValueError(
                f"parallel.address={self.address} would be ignored, as parallel.backend=local runs "
                "every stage in this process; set parallel.backend=ray, or parallel.address=local"
            )

    def _check_devices(self) -> None:
        each = self.num_branches * self.gpus_per_stage
        asked, most = f"parallel.devices={self.devices}", self.num_stages * each
        check_range("parallel.devices", self.devices, 0, math.inf, "counts nothing")
        if self.devices > most:
            idle = self.devices - most
            shares = f" of {self.gpus_per_stage} devices" * (self.gpus_per_stage > 1)
            raise ValueError(
                f"{asked} leaves {counted(idle, 'device')} without a stage, as "
                f"parallel.num_stages={self.num_stages}{shares} with parallel.cfg={self.cfg} makes "
                f"{most}; set it to at most {most}, or to 0 for devices of its own for every stage"
            )
        if self.devices % each:
            split = self.num_branches > 1
            who = ["the two branches of parallel.cfg=split"] * split
            who += ["stages of several devices"] * (self.gpus_per_stage > 1)
            raise ValueError(
                f"{asked} cannot be shared evenly by {' and '.join(who)}, so one would keep the "
                f"other waiting; set it to {-(-self.devices // each) * each}, or "
                f"{'parallel.cfg=batch' if split else 'parallel.gpus_per_stage=1'}"
            )
        if self.devices > 1 and self.backend == "local":
            raise ValueError(
                f"{asked} would be ignored, as parallel.backend=local runs every stage in this "
                "process, on one device; set parallel.backend=ray, or leave it out"
            )
