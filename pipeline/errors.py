"""What ends a render that was fine to start."""


class RenderError(RuntimeError):
    """A render that cannot go on, and why."""
