"""The server's log: one JSON object a line, without the content of requests and without keys."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time, level, event, and the record's ``fields``.

    Of an exception it names the class and the line that raised it: its message may quote a request.
    ``RETRO_TRACEBACK=1`` adds the traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["at"] = _place(record.exc_info[2])
            if os.environ.get("RETRO_TRACEBACK") == "1":
                line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_as_json() -> None:
    """Write the log of this process to standard error as :class:`JsonLines`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("retro").setLevel(logging.INFO)
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its messages quote requests
    logging.captureWarnings(True)


def _place(traceback: TracebackType | None) -> str:
    """The line that raised an exception."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return f"{Path(traceback.tb_frame.f_code.co_filename).name}:{traceback.tb_lineno}"
