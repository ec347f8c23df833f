"""What an error says, in a line, and whether it is a want of memory."""


def first_line(error: BaseException) -> str:
    """Its kind, where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def is_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on whatever device: torch's, Ray's, NumPy's and Python's
    errors; of a CPU torch has none of its own."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or "allocate memory" in str(error)
