"""Which stages each device of a render runs: pure data."""

from dataclasses import dataclass

from ..configs.schema import ParallelConfig
from .split import split_evenly

CONDITIONAL, UNCONDITIONAL = 0, 1  # branches of guidance


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What one device runs."""

    branch: int  # conditional, which stands for both where they share their stages
    stages: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A chain of stages, or one for each branch of guidance, on devices of one kind."""

    num_stages: int  # of each chain
    num_branches: int
    num_devices: int  # of all chains; consecutive stages share one where there are fewer

    @property
    def chain_length(self) -> int:
        """Devices of each chain."""
        return self.num_devices // self.num_branches

    @property
    def shared(self) -> bool:
        """Whether some device runs several stages."""
        return self.chain_length < self.num_stages

    @property
    def seats(self) -> tuple[Seat, ...]:
        """The conditional chain's in order, then the unconditional one's."""
        runs = split_evenly(self.num_stages, self.chain_length)
        return tuple(
            Seat(branch=branch, stages=stages)
            for branch in range(self.num_branches)
            for stages in runs
        )


def make_layout(parallel: ParallelConfig) -> Layout:
    return Layout(
        num_stages=parallel.num_stages,
        num_branches=parallel.num_branches,
        num_devices=parallel.num_devices,
    )
