"""Secrets: from a variable, or from the file that a variable ending in ``_FILE`` names."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

from holdfast.config.files import read_small
from holdfast.errors import UsageError

AWS_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_LONGEST = 64 << 10


class Secret:
    """A text that is shown nowhere: only ``value`` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @property
    def value(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def load_secret_files(environment: MutableMapping[str, str]) -> None:
    """Fill AWS's variables of credentials from the files that they name with ``_FILE`` at their end.

    They are ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and ``AWS_SESSION_TOKEN``. The variables that name
    files are taken out, so that a second call does nothing. On an error nothing is changed.

    :raises UsageError: both are given, or a file cannot be read or is empty.
    """
    found = {name: text for name in AWS_SECRETS if (text := read_secret_file(environment, name)) is not None}
    environment.update(found)
    for name in found:
        del environment[f"{name}_FILE"]


def read_secret_file(environment: Mapping[str, str], name: str) -> str | None:
    """Read the file that the variable ``name`` with ``_FILE`` names, None where there is none.

    :raises UsageError: ``name`` itself is given too, or the file cannot be read or is empty.
    """
    path = environment.get(f"{name}_FILE")
    if not path:
        return None
    if environment.get(name):
        raise UsageError(f"both {name} and {name}_FILE are set", hint="leave one of them out")
    return read_secret(path, f"{name}_FILE")


def read_secret(path: str, setting: str) -> str:
    """Read the file of a secret: UTF-8, at most 64 KiB, without one newline at its end.

    :raises UsageError: it cannot be read, or is empty, too long or no text. Names ``setting`` and path, never content.
    """
    data = read_small(path, _LONGEST, setting)
    try:
        text = data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        # Not chained: that error holds the content.
        raise UsageError(f"{setting}: {path!r} is no UTF-8 text") from None
    if not text:
        raise UsageError(f"{setting}: {path!r} is empty")
    return text
