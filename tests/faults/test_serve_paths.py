"""Requests of every shape, and links in every place: what lies outside the roots is neither read nor written."""

import ctypes
import io
import os
import random
import socket
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from backups import state
from serving import Serving
from trees import write

REQUESTS = 1_100  # for each of two servers
CANARY = b"a canary that lies outside and must not be carried off"
INSIDE = b"a canary that lies inside and shows that one would be seen"
TIMEOUT_S = 60
EXCHANGE = 2  # RENAME_EXCHANGE, renameat2(2)

SERVERS = {
    "registry": {"HOLDFAST_LAYOUT": "registry", "HOLDFAST_PERSIST_VERBS": "get-saves"},
    "tarball": {"HOLDFAST_LAYOUT": "tarball", "HOLDFAST_PERSIST_VERBS": "put-saves"},
}


class Land:
    """Two roots, one of them a symlink, and beside them what must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.linked = folder / "data", folder / "linked"
        self.outside, self.prefixed = folder / "outside", folder / "data-private"
        self.log_folder = folder / "log"
        self.log_folder.mkdir()
        for path in (self.outside, self.prefixed, folder / "real-private"):
            write(path / "secret", CANARY)
            write(path / "folder" / "secret", CANARY)
        for path in (self.data / "tree", folder / "real"):
            write(path / "secret", INSIDE)
            write(path / "folder" / "secret", INSIDE)
        self.linked.symlink_to("real")
        links = {
            "to-file": "../outside/secret",
            "to-directory": "../outside",
            "to-prefixed": folder / "data-private",
            "to-root": "/",
            "to-parent": "..",
            "to-nothing": "../outside/new",
            "to-other-root": "../linked",
            "first": "second",
            "second": "third/../to-directory/folder",
            "third": "tree",
            "loop": "pool",
            "pool": "loop",
            "self": "self/self",
        }
        for name, target in links.items():
            (self.data / name).symlink_to(target)
            (self.data / "tree" / name).symlink_to(target)

    def untouched(self) -> dict[str, object]:
        """All that no request may change."""
        names = ("outside", "data-private", "real-private")
        return {name: state(self.folder / name) for name in names} | {"names": sorted(os.listdir(self.folder))}

    def lay_bait(self, layout: str) -> None:
        """Keep something under the names of what lies outside, for whoever would restore it there."""
        files = ("outside/new", "outside/secret", "data/to-nothing", "data/to-file")
        folders = ("data-private", "real-private", "outside/folder", "data/to-directory")
        bait = self.folder / "bait"
        for name in (*files, *folders):
            path = bait / name
            write(path if name in files else path / "bait", b"bait")
            if layout == "tarball":
                key = self.folder / "store" / str(self.folder / name).lstrip("/")
                write(key, b"bait" if name in files else _tar(path))
            else:
                command = [sys.executable, "-m", "holdfast", "backup", path, "--name", self.folder / name, "--quiet"]
                subprocess.run([*command, "--store", self.store], check=True)

    def serve(self, layout: str) -> Serving:
        roots = f"{self.data}:{self.linked}"
        store = {"HOLDFAST_STORE": self.store, "HOLDFAST_COMPRESSION": "none"}
        return Serving(self.log_folder, {**store, "HOLDFAST_PERSIST_ROOTS": roots, **SERVERS[layout]})

    @property
    def store(self) -> str:
        return f"file://{self.folder / 'store'}"

    def stored(self, what: bytes) -> list[str]:
        """The files of the store that hold some bytes."""
        found = (path for path in (self.folder / "store").rglob("*") if path.is_file())
        return [str(path) for path in found if what in path.read_bytes()]


@pytest.fixture
def land(tmp_path):
    (tmp_path / "store").mkdir()
    return Land(tmp_path)


class Requests:
    """Makes requests up."""

    METHODS = (
        b"GET",
        b"PUT",
        b"POST",
        b"HEAD",
        b"DELETE",
        b"OPTIONS",
        b"PATCH",
        b"TRACE",
        b"CONNECT",
        b"get",
        b"X" * 99,
    )
    PARTS = (
        *(b"..", b".", b"", b"...", b"..;", b"..;x=y", b".. ", b"..\\", b"\\..\\..\\", b"..\0", b"\0", b"-", b"~"),
        *(b"tree", b"folder", b"secret", b"new", b"to-file", b"to-directory", b"to-prefixed", b"to-root", b"to-parent"),
        *(b"to-nothing", b"to-other-root", b"first", b"second", b"third", b"loop", b"self", b"outside", b"linked"),
        *(b"\x01\x1b[31m", b"\r\nX-Y: z", b"\n", b"\x7f", b"\xff\xfe", b"\xc3\xa9", b"\xe2\x80\xae", b"\xed\xa0\x80"),
        *(b"a" * 255, b"a" * 256, b"%s%n", b"${HOME}", b"$(id)", b"%2e%2e", b"?", b"#", b"*", b"data", b"data-private"),
    )
    OVERLONG = ((b".", b"%c0%ae"), (b"/", b"%c0%af"), (b"/", b"%e0%80%af"), (b".", b"%ef%bc%8e"), (b"/", b"%ef%bc%8f"))
    QUERIES = (b"?", b"?snapshot=..%2f..%2fx", b"?snapshot=latest", b"?at=2020-01-01", b"?at=%00", b"?at=-1", b"?x=y")
    QUERIES += (b"#x", b";x", b"?/../../outside", b"?" + b"q" * 3000, b"?snapshot=a&snapshot=b", b"?at=9999999999999")
    HEADERS = (
        *(
            b"Accept: application/x-ndjson",
            b"Authorization: Bearer \xff\xfe",
            b"Origin: null",
            b"Sec-Fetch-Site: cross-site",
        ),
        *(b"Expect: 100-continue", b"Expect: x", b"Upgrade: websocket", b"Connection: Upgrade, HTTP2-Settings"),
        *(
            b"X-Forwarded-Prefix: /../..",
            b"X-Original-URL: /etc/passwd",
            b"X-HTTP-Method-Override: PUT",
            b"Range: bytes=0-",
        ),
        *(
            b"X-Long: " + b"x" * 10_000,
            b"Host: y",
            b"Content-Encoding: gzip",
            b"Content-Type: \xff",
            b"no header at all",
        ),
        *(b"Accept: " + b"application/x-ndjson," * 99, b"If-None-Match: *", b": nameless", b" folded: x", b"X: \0"),
    )
    BODIES = (
        (b"Content-Length: 5", b"bytes"),
        (b"Content-Length: 5", b"more bytes than five"),
        (b"Content-Length: 0", b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"),
        (b"Content-Length: -5", b"bytes"),
        (b"Content-Length: 5, 6", b"bytes"),
        (b"Content-Length: 99999999999999999999", b"bytes"),
        (b"Transfer-Encoding: chunked", b"5\r\nbytes\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: chunked", b"zz\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 3", b"5\r\nbytes\r\n0\r\n\r\n"),
        (b"Transfer-Encoding: identity, x", b"bytes"),
        (b"Content-Type: application/json\r\nContent-Length: 20", b'{"path":"/etc/shado"'),
    )

    def __init__(self, land: Land, seed: int) -> None:
        self._rng = random.Random(seed)
        folder = os.fsencode(land.folder)
        inside = (b"data", b"data/tree", b"data/tree/folder", b"data/tree/secret", b"linked", b"linked/secret", b"real")
        beside = (b"outside", b"outside/secret", b"data-private/secret", b"real-private")
        self._bases = [folder + b"/" + name for name in (*inside, *inside, *inside, *beside)]
        # Through the links in the middle of a path: to a directory, to all of this machine, back by another way.
        self._bases += [folder + b"/data/to-directory", folder + b"/data/to-root" + folder + b"/outside"]
        self._bases += [folder + b"/data/tree/to-parent/outside", folder + b"/linked/../outside", folder + b"/real"]
        self._bases += [b"/", b"/etc/passwd", b"/proc/self/environ", b"/proc/self/fd", b"/dev/zero", folder]

    def make(self) -> bytes:
        rng = self._rng
        method = rng.choice(self.METHODS[:3] if rng.random() < 0.8 else self.METHODS)
        headers = [b"Host: x", *rng.sample(self.HEADERS, rng.choice((0, 0, 0, 0, 0, 0, 1, 2)))]
        length, body = rng.choice(self.BODIES) if rng.random() < 0.2 else (None, b"")
        headers += [length] if length else []
        version = rng.choice((b"HTTP/1.1",) * 20 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 x", b""))
        lines = [b" ".join((method, self._target(), version)), *headers, b"Connection: close"]
        return b"\r\n".join([*lines, b"", body])

    def _target(self) -> bytes:
        rng = self._rng
        path = rng.choice(self._bases)
        if rng.random() < 0.5:
            path = b"/".join([path, *rng.choices(self.PARTS, k=rng.choice((1, 1, 2, 3, 5)))])
        if rng.random() < 0.15:
            path += b"/.." * rng.randrange(1, 20) + rng.choice(self._bases)
        if rng.random() < 0.02:
            path += rng.choice((b"/" + b"a" * 65_536, b"/.." * 22_000, b"/a" * 4_000, b"/%" * 300))
        target = self._encoded(path)
        before = (b"/-/snapshots", b"/", b"//", b"http://x", b"http://[::1]:80", b"x")
        target = rng.choice(before) + target if rng.random() < 0.2 else target
        return target + rng.choice(self.QUERIES) if rng.random() < 0.15 else target

    def _encoded(self, path: bytes) -> bytes:
        rng = self._rng
        how = rng.random()
        if how < 0.1:  # as it is, whatever that does to the request's line
            return path
        if how < 0.5:
            return b"".join(bytes([c]) if _is_plain(c) else b"%%%02X" % c for c in path)
        if how < 0.65:
            return b"".join(rng.choice((b"%%%02x", b"%%%02X")) % c for c in path)
        if how < 0.8:
            return b"".join(b"%%25%02x" % c if rng.random() < 0.3 or not _is_plain(c) else bytes([c]) for c in path)
        if how < 0.9:
            mixed = (b"/" if c == ord("/") and rng.random() < 0.8 else b"%%%02x" % c for c in path)
            return b"".join(mixed)
        plain, overlong = rng.choice(self.OVERLONG)
        return b"".join(bytes([c]) if _is_plain(c) else b"%%%02X" % c for c in path).replace(plain, overlong)


def _tar(folder: Path) -> bytes:
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w") as archive:
            archive.add(folder, ".")
        return made.getvalue()


def _is_plain(char: int) -> bool:
    return 0x21 <= char < 0x7F and char not in b"%?#"


def _send(server, request):
    """All that comes back for some bytes; nothing where the server hangs up on them."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        with suppress(ConnectionError):
            connection.sendall(request)
        with suppress(ConnectionError):
            while piece := connection.recv(65_536):
                received += piece
    return received


def _assert_sane(server, land, before):
    assert server.ask("GET", "/-/health").json == {"status": "ok", "running": 0, "waiting": 0}
    assert land.untouched() == before
    assert land.stored(CANARY) == []
    assert land.stored(INSIDE)
    assert CANARY not in server.log.read_bytes()
    for line in server.logged():  # each of them is JSON
        assert "trace" not in line, line
        assert line["event"] != "internal error"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", SERVERS)
def test_no_request_leads_out_of_the_roots(land, layout):
    land.lay_bait(layout)
    server = land.serve(layout)
    try:
        save, replace = ("GET", "PUT") if layout == "registry" else ("PUT", "POST")
        before = land.untouched()
        for path in (land.data / "tree", land.linked):
            assert server.ask(save, str(path)).status == 200
            assert server.ask(replace, str(path)).status == 200
        requests = Requests(land, len(layout))
        statuses: dict[bytes, int] = {}
        for _ in range(REQUESTS):
            request = requests.make()
            answer = _send(server, request)
            status = answer[9:12]
            statuses[status] = statuses.get(status, 0) + 1
            assert status != b"500", (request[:2000], answer[-2000:])
            assert not answer or answer.startswith(b"HTTP/1.1 "), (request[:2000], answer[:2000])
            assert CANARY not in answer

        assert {b"200", b"400", b"403", b"404", b"405"} <= statuses.keys(), statuses
        _assert_sane(server, land, before)
        assert server.end() == 0
    finally:
        server.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("layout", "paths"),
    [
        ("registry", ["", "/", "/deep", "/deep/folder", "/deep/folder/3", "/file"]),
        ("tarball", ["", "/"]),
        ("tarball", ["/deep/folder", "/file"]),  # a directory holds no tarball both of a path and of what is below it
    ],
)
def test_a_directory_that_is_exchanged_for_a_link_to_another(land, layout, paths):
    """While somebody below a root keeps putting a link in the place of a directory, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    swapped, link = land.data / "swapped", land.data / "link"
    for path in (swapped, land.outside):
        content = CANARY if path == land.outside else INSIDE
        for number in range(20):
            write(path / "deep" / "folder" / f"{number}", content)
        write(path / "file", content)
    link.symlink_to(land.outside)
    names = os.fsencode(swapped), os.fsencode(link)

    def exchange():
        return libc.renameat2(-100, names[0], -100, names[1], EXCHANGE)

    if exchange():
        pytest.skip("this file system cannot exchange two names")
    exchange()
    server = land.serve(layout)
    save, replace, merge = ("GET", "PUT", "POST") if layout == "registry" else ("PUT", "POST", "GET")
    before = land.untouched()
    is_over = threading.Event()

    def keep_exchanging():
        while not is_over.is_set():
            exchange()

    def ask(number):
        rng = random.Random(number)
        target = f"{swapped}{rng.choice(paths)}"
        (swapped / "surplus").unlink(missing_ok=True)  # a link or not: of what lies outside, none is called so
        answer = server.ask(rng.choice((save, replace, replace, merge)), target)
        assert CANARY not in answer.body
        return answer.status

    try:
        for path in paths:
            assert server.ask(save, f"{swapped}{path}").status == 200
        exchanging = threading.Thread(target=keep_exchanging)
        exchanging.start()
        try:
            with ThreadPoolExecutor(4) as pool:
                statuses = set(pool.map(ask, range(400)))
        finally:
            is_over.set()
            exchanging.join()
        assert {200, 403} <= statuses, statuses
        _assert_sane(server, land, before)
        assert server.end() == 0
    finally:
        server.stop()
