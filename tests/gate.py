"""A TCP proxy that a test opens and shuts, so that it can stop two programs in mid-sentence without a sleep."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal

WAIT_S = 60
_PIECE_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger, socket(7)

Way = Literal["in", "out"]


class Gate:
    """Passes connections on to a port of the loopback. ``inwards`` and ``outwards`` count the bytes that have passed.

    Closed, connections stay, and nothing passes. Cut, all are reset, and so is each new one.
    """

    def __init__(self, port: int) -> None:
        self.inwards = self.outwards = 0
        self._behind = port
        self._changed = threading.Condition()
        self._state: Literal["open", "closed", "cut"] = "open"
        self._last: tuple[Way, int, Literal["closed", "cut"]] | None = None
        self._held = 0
        self._sockets: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listening.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def open(self) -> None:
        self._set("open")

    def close(self) -> None:
        self._set("closed")

    def cut(self) -> None:
        self._set("cut")

    def close_after(self, size: int, way: Way = "out") -> None:
        """Close by itself once ``size`` more bytes have passed: ``out`` of the server, or ``in``."""
        self._after(size, way, "closed")

    def cut_after(self, size: int, way: Way = "out") -> None:
        """Cut in the same manner."""
        self._after(size, way, "cut")

    def wait_until_held(self) -> None:
        """Wait until something wants to pass the closed gate."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held > 0, WAIT_S), "nobody came to the gate"

    def wait_until_cut(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._state == "cut", WAIT_S), "the gate was not cut"

    def stop(self) -> None:
        """End all connections, and take no more."""
        self.cut()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(WAIT_S)
        self._listening.close()

    def _after(self, size: int, way: Way, state: Literal["closed", "cut"]) -> None:
        with self._changed:
            self._last = (way, size + (self.outwards if way == "out" else self.inwards), state)

    def _set(self, state: Literal["open", "closed", "cut"]) -> None:
        with self._changed:
            self._state, self._last = state, None
            self._changed.notify_all()
            if state == "cut":
                self._reset()

    def _reset(self) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):  # it has ended
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads or writes it, which closes it

    def _accept(self) -> None:
        while True:
            try:
                client = self._listening.accept()[0]
            except OSError:
                return
            with contextlib.suppress(OSError):  # nobody behind the gate: the client is let go
                self._link(client, socket.create_connection(("127.0.0.1", self._behind)))
                continue
            client.close()

    def _link(self, client: socket.socket, server: socket.socket) -> None:
        with self._changed:
            self._sockets |= {client, server}
            if self._state == "cut":
                self._reset()
        for source, sink, way in ((client, server, "in"), (server, client, "out")):
            threading.Thread(target=self._pump, args=(source, sink, way), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, way: Way) -> None:
        with contextlib.suppress(OSError):  # one of the two has ended, or the gate was cut
            while (data := source.recv(_PIECE_BYTES)) and self._may_pass(len(data), way):
                sink.sendall(data)
        self._end(source, sink)

    def _end(self, source: socket.socket, sink: socket.socket) -> None:
        """Let the other side know; the second of the two threads closes both."""
        with self._changed:
            for one in (sink, source):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            if source in self._sockets and sink in self._sockets:
                self._sockets.remove(source)
            else:
                source.close()
                sink.close()
                self._sockets -= {source, sink}

    def _may_pass(self, size: int, way: Way) -> bool:
        """Wait until the gate is not closed; False once it is cut."""
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._state != "closed")
            self._held -= 1
            if self._state == "cut":
                return False
            if way == "out":
                self.outwards += size
            else:
                self.inwards += size
            if (
                self._last
                and self._last[0] == way
                and (self.outwards if way == "out" else self.inwards) >= self._last[1]
            ):
                self._set(self._last[2])
            return self._state != "cut"
