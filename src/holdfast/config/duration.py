"""Durations as people write them."""

from __future__ import annotations

import re

from holdfast.errors import UsageError

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Read a number with ms, s, m or h, in seconds.

    :raises UsageError: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"not a duration: {text!r}", hint="write a number with ms, s, m or h, as in 30s")
    return float(match[1]) * _UNITS[match[2]]
