"""Bounds what is under way at once."""

from __future__ import annotations

from threading import Condition


class Budget:
    """Bytes that may be under way at once. What is larger than all of it goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = Condition()

    def take(self, size: int) -> None:
        """Wait until ``size`` bytes fit, and take them."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._limit)
            self._taken += size

    def wait(self) -> None:
        """Wait until no more is taken than there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._taken <= self._limit)

    def give_back(self, size: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._taken -= size
            self._changed.notify_all()
