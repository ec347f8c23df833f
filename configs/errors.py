"""What an error says, in a line, and whether it is a want of memory."""

# of a CPU torch has no kind of its own; a GPU's is for its allocator alone, and what asks the
# driver (a context, a handle of cuBLAS or cuDNN, NCCL's buffers) says so in words
_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED")


def first_line(error: BaseException) -> str:
    """Its kind, where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def is_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on whatever device: torch's, Ray's, NumPy's and Python's
    errors."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = str(error)
    return bool(kinds & {"OutOfMemoryError", "MemoryError"}) or any(it in said for it in _MEMORY)
