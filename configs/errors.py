"""What an error says, in a line."""


def first_line(error: BaseException) -> str:
    """Its kind, where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
