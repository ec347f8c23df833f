"""What ends a chain that was fine to start."""


class ChainBroken(RuntimeError):  # noqa: N818 -- what has happened to it
    """A stage is gone, or out of reach; the text names it and the work that was lost with it."""
