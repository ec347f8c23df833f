"""Writes the OpenAPI document of the server: python -m longreel.jobs.serve.openapi FILE."""

import json
import sys
import tempfile
from pathlib import Path

from .app import make_app


def write_openapi(path: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        app = make_app(Path(home))
        path.write_text(json.dumps(app.openapi(), indent=1) + "\n", encoding="utf-8")
        app.state.context.queue.close()


if __name__ == "__main__":
    write_openapi(Path(sys.argv[1]))
