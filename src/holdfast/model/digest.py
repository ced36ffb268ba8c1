"""Content digests as in the OCI image specification (descriptor.md, *Digests*)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from holdfast.errors import UsageError

_DIGEST = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm (``sha256`` or ``sha512``) and the lower-case hex of the hash; ``str()`` gives ``algorithm:hex``."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``algorithm:hex``.

        :raises UsageError: it is not a digest that the registry layout can hold.
        """
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise UsageError(f"not a digest: {text[:200]!r}", hint="a digest reads sha256: and 64 hex digits")
        algorithm, _, hexadecimal = text.partition(":")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Hash ``data`` with SHA-256."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def matches(self, data: bytes) -> bool:
        """Whether ``data`` is what this digest names."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex
