"""One JSON object a line on stderr: what happened, to which render, when."""

import json
import logging
import sys
import time
from typing import Any

_log = logging.getLogger("longreel.serve")
_OWN = {*vars(logging.makeLogRecord({})), "color_message"}  # uvicorn's event again, for terminals


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_logs() -> None:
    """From here on, for this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    for name in ("longreel", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def say(event: str, **facts: object) -> None:
    _log.info(event, extra=facts)


def complain(event: str, **facts: object) -> None:
    _log.warning(event, extra=facts)
