"""The learning rate of a step."""

import math

from ...configs.train_schema import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """A line up over the warm-up, then half a cosine down to the final share."""
    if step < optimizer.warmup:
        return optimizer.learning_rate * (step + 1) / optimizer.warmup
    done = (step - optimizer.warmup) / max(1, steps - 1 - optimizer.warmup)
    share = optimizer.final + (1 - optimizer.final) * (1 + math.cos(math.pi * done)) / 2
    return optimizer.learning_rate * share
