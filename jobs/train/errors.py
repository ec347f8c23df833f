"""What ends a training that was fine to start."""


class TrainingError(RuntimeError):
    """A training that cannot go on, and why."""
