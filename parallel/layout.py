"""Which stages each device of a render runs: pure data."""

from dataclasses import dataclass

from ..configs.parallel import ParallelConfig
from .mesh import Mesh
from .split import split_evenly

CONDITIONAL, UNCONDITIONAL = 0, 1  # branches of guidance


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What one device runs."""

    branch: int  # conditional, which stands for both where they share their stages
    stages: range
    share: int  # which of the devices that run them, each with a share of the tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A chain of stages, or one for each branch of guidance, on devices of one kind."""

    num_stages: int  # of each chain
    mesh: Mesh  # its stages: places in a chain; consecutive stages share one where there are fewer

    @property
    def num_branches(self) -> int:
        return self.mesh.cfg

    @property
    def num_devices(self) -> int:
        """Of all chains."""
        return self.mesh.size

    @property
    def chain_length(self) -> int:
        """Places of each chain."""
        return self.mesh.stage

    @property
    def num_shares(self) -> int:
        """Devices of each place."""
        return self.mesh.ring * self.mesh.ulysses

    @property
    def shared(self) -> bool:
        """Whether some device runs several stages."""
        return self.chain_length < self.num_stages

    @property
    def last(self) -> int:
        """The seat where the conditional chain ends: guidance and solver act there."""
        return self.mesh.number(stage=self.chain_length - 1)

    @property
    def seats(self) -> tuple[Seat, ...]:
        """In the order of the mesh: the conditional chain's, then the unconditional one's."""
        runs = split_evenly(self.num_stages, self.chain_length)
        return tuple(
            Seat(branch=branch, stages=stages, share=share)
            for branch in range(self.num_branches)
            for stages in runs
            for share in range(self.num_shares)
        )


def make_layout(parallel: ParallelConfig) -> Layout:
    each = parallel.num_branches * parallel.gpus_per_stage
    return Layout(
        num_stages=parallel.num_stages,
        mesh=Mesh(
            cfg=parallel.num_branches,
            stage=parallel.num_devices // each,
            ring=parallel.ring,
            ulysses=parallel.gpus_per_stage // parallel.ring,
        ),
    )
