"""The log of a server process: its form, and one line for every request."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone

from server.http.exchanges import Exchange
from server.http.request_ids import current_request_id
from server.settings.settings import LogFormat, LogLevel

log = logging.getLogger(__name__)

_PROBES = {"/healthz", "/readyz", "/metrics"}
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def configure(log_format: LogFormat, log_level: LogLevel) -> None:
    """Write the log of this process to standard error.

    Args:
        log_format: Of the lines.
        log_level: Of the server's own lines; libraries say only warnings and worse.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMS[log_format]())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("server").setLevel(log_level.upper())


def log_exchange(exchange: Exchange) -> None:
    """Write the line of one request; those of probes that go well are of level debug."""
    is_fine = exchange.status is not None and exchange.status < 400
    level = logging.DEBUG if exchange.route in _PROBES and is_fine else logging.INFO
    log.log(
        level,
        "%s %s: %s in %.3f s, %d bytes in, %d bytes out",
        exchange.method,
        exchange.route or "no such route",
        exchange.status,
        exchange.seconds,
        exchange.bytes_in,
        exchange.bytes_out,
        extra={"facts": asdict(exchange)},
    )


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, request id, and the facts of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: dict[str, object] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": current_request_id(),
            **_facts_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, request id and message; only a traceback has more than one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return one line, in which nothing that came from outside can begin another."""
        message = record.message.translate(_CONTROLS)
        request_id = current_request_id()
        about = f" [{request_id}]" if request_id else ""
        device_id = _facts_of(record).get("device_id")
        by_whom = f", device {device_id}" if device_id else ""
        return f"{_time_of(record)} {record.levelname}{about} {message}{by_whom}"


_FORMS: Mapping[LogFormat, type[logging.Formatter]] = {"text": TextLines, "json": JsonLines}


def _time_of(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _facts_of(record: logging.LogRecord) -> dict[str, object]:
    facts: dict[str, object] = getattr(record, "facts", {})
    return facts
