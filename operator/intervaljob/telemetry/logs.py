"""Logs: one line per record, on stderr.

A message is a constant text; what varies stands in fields: `logger.info("Task ended", extra={"task":
task_id})`.

    2026-11-23T10:00:00.123Z INFO Task ended task=0d5e… outcome=succeeded
    {"time": "2026-11-23T10:00:00.123Z", "level": "info", "logger": "…", "message": "Task ended", "task": …}
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

#: These tell of every request or every object; they are heard where one asks for debug.
NOISY = ("aiohttp.access", "kopf")

# What every record has, and what kopf adds to its own for its own use.
_NO_FIELDS = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "k8s_skip", "settings"},
)


def configure(*, format: Literal["text", "json"], level: str, stream: TextIO | None = None) -> None:  # noqa: A002
    """Send every record of `level` (debug, info, warning, error) and above to `stream`, stderr if None.

    Replaces whatever handlers the root logger had, so that it can be called again, as in a forked child.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    noise = logging.NOTSET if level == "debug" else logging.WARNING
    for name in NOISY:
        logging.getLogger(name).setLevel(noise)


class TextLines(logging.Formatter):
    """`time LEVEL message key=value …`; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = (f" {key}={_text(value)}" for key, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{''.join(fields)}"
        return "\n".join((line, *_traces(record)))


class JsonLines(logging.Formatter):
    """One object per line. A field named like one of the line's own keys gets a `_` behind its name."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if traces := _traces(record):
            line["trace"] = "\n".join(traces)
        own = frozenset(line)
        line |= {f"{key}_" if key in own else key: value for key, value in _fields(record).items()}
        return json.dumps(line, default=str, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _NO_FIELDS}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _text(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(sign in text for sign in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _traces(record: logging.LogRecord) -> list[str]:
    traces = []
    if record.exc_info:
        traces.append(logging.Formatter().formatException(record.exc_info))
    if record.stack_info:
        traces.append(record.stack_info)
    return traces
