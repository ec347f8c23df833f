"""What a client raises besides what httpx does."""


class ServerError(RuntimeError):
    """The server's own answer to what was asked; `code` is its word for it."""

    def __init__(self, status: int, code: str, message: str, field: str | None) -> None:
        super().__init__(message)
        self.status, self.code, self.field = status, code, field


class RenderFailed(RuntimeError):  # noqa: N818 -- as it is called everywhere: its state
    """A render ended, and not as `done`: what is final of it can still be had."""

    def __init__(self, render: str, status: str, message: str) -> None:
        super().__init__(f"render {render} is {status}" + (f": {message}" if message else ""))
        self.render, self.status = render, status
