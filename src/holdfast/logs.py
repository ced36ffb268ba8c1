"""Structured logs on stderr: one line for each event, as text or as JSON.

Names and values may come from anybody, so no control character and no newline of theirs reaches a line. Nothing is
looked for that could be a secret: callers pass none.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

Value = str | int | float | bool | None
"""What a field may hold. Paths are given as text, as ``model.snapshot.shown`` makes it."""

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warn", "error")

_NUMBERS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_OWN = "holdfast"
# Other libraries write what is secret when they debug (botocore: signed requests), so only these follow the level.
_FOLLOWERS = (_OWN, "uvicorn")
_log = logging.getLogger(_OWN)


def set_up(format: str, level: str) -> None:  # noqa: A002 - what the setting is called
    """Send the logs of the process to stderr, in place of what was set up before.

    ``format`` is one of ``FORMATS``, ``level`` one of ``LEVELS``: the least that Holdfast and uvicorn write. Of
    other libraries come warnings and errors only. uvicorn must be started with ``log_config=None``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(format))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(logging.WARNING, _NUMBERS[level]))
    for name in _FOLLOWERS:
        logging.getLogger(name).setLevel(_NUMBERS[level])


def formatter(format: str) -> logging.Formatter:  # noqa: A002 - what the setting is called
    """Give what turns a record into one line without its newline."""
    return _Json() if format == "json" else _Text()


def debug(event: str, /, **fields: Value) -> None:
    """Log what only a developer wants."""
    _log.debug(event, extra={"fields": fields})


def info(event: str, /, **fields: Value) -> None:
    """Log what happened as it should."""
    _log.info(event, extra={"fields": fields})


def warn(event: str, /, **fields: Value) -> None:
    """Log what somebody should look at."""
    _log.warning(event, extra={"fields": fields})


def error(event: str, /, *, exception: BaseException | None = None, **fields: Value) -> None:
    """Log what failed; with ``exception`` also its traceback, on the same line."""
    _log.error(event, exc_info=exception, extra={"fields": fields})


class _Text(logging.Formatter):
    """``TIME LEVEL EVENT  NAME=VALUE …``."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = " ".join(f"{name}={_word(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)} {_level(record):<5} {_escaped(_event(record))}"
        return f"{line}  {pairs}" if pairs else line


class _Json(logging.Formatter):
    """An object with ``time``, ``level``, ``event``, and the fields. All ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        own = {"time": _time(record), "level": _level(record), "event": _event(record)}
        return _json({**own, **_fields(record), **own})


def _fields(record: logging.LogRecord) -> dict[str, Value]:
    fields: dict[str, Value] = dict(getattr(record, "fields", {}))
    if record.name != _OWN:
        fields["logger"] = record.name
    if record.exc_info and record.exc_info[1]:
        fields["trace"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _event(record: logging.LogRecord) -> str:
    return record.getMessage().rstrip("\n")  # uvicorn ends some of its own with one


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _level(record: logging.LogRecord) -> str:
    return next((name for name in reversed(LEVELS) if record.levelno >= _NUMBERS[name]), LEVELS[0])


def _word(value: Value) -> str:
    if not isinstance(value, str):
        return _json(value)
    if value and value.isprintable() and not set(value) & set(' "=\\'):
        return value
    return '"' + _escaped(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _escaped(text: str) -> str:
    r"""Write what does not print (controls, newlines, marks of direction, surrogates) as ``\n`` or ``\uNNNN``."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return _json(char)[1:-1]


def _json(value: object) -> str:
    """Write JSON in ASCII without control characters, of which JSON would let DEL through."""
    return json.dumps(value, default=str).replace("\x7f", "\\u007f")
