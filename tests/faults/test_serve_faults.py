"""The server when something goes: its bucket, its disk, its clients, or itself."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from backups import contents, leftovers, state
from gate import Gate
from servers import answers
from serving import Serving
from trees import MIB, random_bytes

LAYOUTS = ["registry", "tarball"]
WAIT_S = 60


@pytest.fixture
def gate(seaweedfs):
    gate = Gate(urlsplit(seaweedfs.endpoint).port)
    yield gate
    gate.stop()


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def serve(tmp_path, data):
    """serve(store, **settings): a server over `data`."""
    started = []

    def start(store, **settings):
        names = {f"HOLDFAST_{name.upper()}": value for name, value in settings.items()}
        roots = {"HOLDFAST_PERSIST_ROOTS": str(data)}
        started.append(Serving(tmp_path, {"HOLDFAST_STORE": store, **roots, **names}))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def behind_gate(s3_bucket, gate):
    """The URL of a bucket that is reached through the gate."""
    return f"s3://{s3_bucket.name}?endpoint=http://127.0.0.1:{gate.port}&region=us-east-1"


@pytest.fixture
def background():
    """background(call, …): its future."""
    with ThreadPoolExecutor(16) as pool:
        yield pool.submit


def _until(reached):
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"


def _jobs(server):
    health = server.ask("GET", "/-/health").json
    return health["running"], health["waiting"]


def _make_tree(tree):
    """Some 24 MiB that do not compress."""
    (tree / "folder").mkdir(parents=True)
    for number in range(40):
        (tree / "folder" / f"{number:02}").write_bytes(random_bytes(200_000, number))
    (tree / "large").write_bytes(random_bytes(16 * MIB))
    (tree / "empty").mkdir()
    (tree / "a file").write_bytes(b"file")
    (tree / "a folder").mkdir()
    (tree / "a folder" / "file").write_bytes(b"below")
    (tree / "link").symlink_to("large")
    for path in (tree, *tree.rglob("*")):  # a tarball keeps whole seconds
        os.utime(path, ns=(0, 1_700_000_000_000_000_000), follow_symlinks=False)


def _change_tree(tree):
    """Give a restore something of each kind to do."""
    for number in range(0, 40, 2):
        (tree / "folder" / f"{number:02}").write_bytes(b"older %d" % number)
    (tree / "folder" / "05").unlink()
    (tree / "large").write_bytes(b"older")
    (tree / "surplus").mkdir()
    (tree / "surplus" / "file").write_bytes(b"precious")


def _put_in_the_way(tree):
    """Let a directory stand where a file was, and a file where a directory was."""
    (tree / "a file").unlink()
    (tree / "a file").mkdir()
    (tree / "a file" / "precious").write_bytes(b"precious")
    shutil.rmtree(tree / "a folder")
    (tree / "a folder").write_bytes(b"local")


def _assert_nothing_lost(before, saved, tree):
    """Whatever was there is there, as it was or as it was saved."""
    now = {name: content for name, content in contents(tree).items() if ".holdfast-" not in name}
    for name, content in before.items():
        assert name in now, name
        assert now[name] in (content, saved.get(name, content)), name
    for name in now.keys() - before.keys():
        assert now[name] == saved[name], name


# The bucket


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bucket_that_dies_in_a_restore_takes_nothing_away(serve, data, gate, behind_gate, layout):
    server = serve(behind_gate, layout=layout)
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    whole, saved = state(tree), contents(tree)
    _change_tree(tree)
    _put_in_the_way(tree)
    before = contents(tree)

    gate.cut_after(6 * MIB)
    failed = server.ask("PUT", str(tree))
    gate.wait_until_cut()

    assert failed.status == 504, failed.body
    assert failed.headers["retry-after"]
    assert failed.json["hint"]
    assert leftovers(tree) == []
    _assert_nothing_lost(before, saved, tree)

    gate.open()
    done = server.ask("PUT", str(tree))
    assert done.status == 200, done.body
    assert state(tree) == whole


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bucket_that_dies_in_a_save_leaves_the_one_before(serve, data, gate, behind_gate, layout):
    server = serve(behind_gate, layout=layout)
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    whole = state(tree)
    (tree / "large").write_bytes(random_bytes(16 * MIB, 2))

    gate.cut_after(4 * MIB, "in")
    failed = server.ask("GET", str(tree))
    gate.wait_until_cut()
    gate.open()

    assert failed.status == 504, failed.body
    assert server.ask("PUT", str(tree)).status == 200
    assert state(tree) == whole


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_server_killed_in_a_restore_takes_nothing_away(serve, data, gate, behind_gate, background, layout):
    server = serve(behind_gate, layout=layout)
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    whole, saved = state(tree), contents(tree)
    _change_tree(tree)
    before = contents(tree)

    gate.close_after(6 * MIB)
    asked = background(server.ask, "PUT", str(tree))
    gate.wait_until_held()
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises((OSError, http.client.HTTPException)):
        asked.result()
    _assert_nothing_lost(before, saved, tree)

    gate.open()
    done = serve(behind_gate, layout=layout).ask("PUT", str(tree))
    assert done.status == 200, done.body
    assert state(tree) == whole
    assert leftovers(tree) == []


# The disk


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_disk_that_is_full_is_told_so_and_more_room_lets_it_go_on(serve, data, tmp_path, layout):
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("a small file system can only be mounted by root")
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", data]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        server = serve(f"file://{tmp_path}/store", layout=layout)
        tree = data / "tree"
        _make_tree(tree)
        assert server.ask("GET", str(tree)).status == 200
        whole, saved = state(tree), contents(tree)
        _change_tree(tree)
        for number in range(1, 40, 2):
            (tree / "folder" / f"{number:02}").unlink(missing_ok=True)
        _put_in_the_way(tree)
        before = contents(tree)
        subprocess.run(["mount", "-o", "remount,size=4m", data], check=True)

        failed = server.ask("PUT", str(tree))

        assert failed.status == 507, failed.body
        assert leftovers(tree) == []
        _assert_nothing_lost(before, saved, tree)
        subprocess.run(["mount", "-o", "remount,size=80m", data], check=True)
        done = server.ask("PUT", str(tree))
        assert done.status == 200, done.body
        assert state(tree) == whole
    finally:
        subprocess.run(["umount", "--lazy", data], check=True)


# Being stopped


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_asked_to_stop_it_ends_what_runs_and_drops_what_waits(serve, data, gate, behind_gate, background, layout):
    server = serve(behind_gate, layout=layout, persist_jobs="1")
    for name in ("first", "second"):
        (data / name).write_bytes(name.encode())
    gate.close()
    runs = background(server.ask, "GET", str(data / "first"))
    gate.wait_until_held()
    waits = background(server.ask, "GET", str(data / "second"))
    _until(lambda: _jobs(server) == (1, 1))

    os.kill(server.pid, signal.SIGTERM)

    assert waits.result().status == 503
    assert waits.result().headers["retry-after"]
    with contextlib.suppress(OSError):  # it may not listen any more
        assert server.ask("GET", str(data / "second")).status == 503
    assert not runs.done()
    gate.open()
    assert runs.result().status == 200
    assert server.wait() == 0
    (data / "first").unlink()
    again = serve(behind_gate, layout=layout)
    assert again.ask("PUT", str(data / "first")).status == 200
    assert (data / "first").read_bytes() == b"first"
    assert again.ask("PUT", str(data / "second")).status == 404


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_what_does_not_end_in_time_is_given_up(serve, data, gate, behind_gate, background, layout, verb):
    server = serve(behind_gate, layout=layout, serve_grace="1s")
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    whole, saved = state(tree), contents(tree)
    _change_tree(tree)
    if verb == "GET":
        (tree / "large").write_bytes(random_bytes(16 * MIB, 2))
    before = contents(tree)
    gate.close_after(2 * MIB, "in" if verb == "GET" else "out")
    asked = background(server.ask, verb, str(tree))
    gate.wait_until_held()

    assert server.end() == 1

    assert asked.result().status == 503
    assert asked.result().headers["retry-after"]
    assert server.logged()[-1]["event"].startswith("stopped with work under way")
    assert not [line for line in server.logged() if "trace" in line]
    _assert_nothing_lost(before, saved, tree)
    gate.open()
    again = serve(behind_gate, layout=layout)
    assert again.ask("PUT", str(tree)).status == 200
    assert state(tree) == whole
    assert leftovers(tree) == []


@pytest.mark.parametrize("sent", [b"", b"GET /-/health HTT", b"GET /-/health HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_connections_that_say_nothing_do_not_keep_it(serve, data, tmp_path, sent):
    server = serve(f"file://{tmp_path}/store")
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(sent)
        if sent.endswith(b"\r\n\r\n"):
            assert idle.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.ask("GET", "/-/health").status == 200

        assert server.end() == 0


@pytest.mark.needs("seaweedfs")
def test_while_saves_run_it_answers(serve, data, gate, behind_gate, background):
    server = serve(behind_gate)
    for number in range(5):
        (data / f"{number}").write_bytes(b"content")
    gate.close()
    saves = [background(server.ask, "GET", str(data / f"{number}")) for number in range(5)]
    _until(lambda: _jobs(server) == (4, 1))

    assert b"holdfast_jobs_running 4.0" in server.ask("GET", "/-/metrics").body
    assert server.ask("GET", "/outside").status == 403
    assert not any(save.done() for save in saves)
    gate.open()
    assert [save.result().status for save in saves] == [200] * 5


# Clients


def _raw(server, data):
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S)
    connection.sendall(data)
    return connection


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_a_client_that_goes_away_takes_no_save_with_it(serve, data, gate, behind_gate, background, accept):
    server = serve(behind_gate)
    (data / "file").write_bytes(b"content")
    gate.close()
    connection = _raw(server, f"GET {data}/file HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode())
    gate.wait_until_held()
    joined = background(server.ask, "GET", f"{data}/file")
    connection.close()
    gate.open()

    assert joined.result().status == 200
    _until(lambda: _jobs(server) == (0, 0))
    history = server.ask("GET", f"/-/snapshots{data}/file").json["snapshots"]
    assert len(history) >= 1
    assert not [line for line in server.logged() if line["level"] == "error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\n",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\nhalf",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"PUT {path} HTTP/1.1\r\nHost: x\r\nX: \0\x01\r\n\r\n",
        b"PUT {path} HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\0" * 100_000,
    ],
)
def test_half_a_request_does_no_harm(serve, data, tmp_path, sent):
    server = serve(f"file://{tmp_path}/store")
    (data / "file").write_bytes(b"content")
    assert server.ask("GET", f"{data}/file").status == 200
    connections = [_raw(server, sent.replace(b"{path}", f"{data}/file".encode())) for _ in range(20)]
    assert server.ask("GET", "/-/health").status == 200
    for connection in connections:
        connection.close()

    assert server.ask("PUT", f"{data}/file").status == 200
    assert (data / "file").read_bytes() == b"content"
    assert server.ask("GET", "/-/health").status == 200
    assert not [line for line in server.logged() if line["level"] == "error"]
    assert server.end() == 0


def _peak_bytes(server):
    with open(f"/proc/{server.pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def test_a_body_costs_no_memory(serve, data, tmp_path):
    """Nobody asked for it, so it is not read further than it takes to see who sends it."""
    server = serve(f"file://{tmp_path}/store")
    (data / "file").write_bytes(b"content")
    assert server.ask("GET", f"{data}/file").status == 200
    assert server.ask("PUT", f"{data}/file").status == 200
    before = _peak_bytes(server)
    for verb in ("PUT", "POST", "GET"):
        connection = _raw(
            server, f"{verb} {data}/file HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n".encode()
        )
        with connection:
            try:
                for _ in range(100):
                    connection.sendall(bytes(1_000_000))
            except OSError:
                pass  # the server has answered, and does not wait for the rest
    assert server.ask("PUT", f"{data}/file").status == 200
    assert _peak_bytes(server) - before < 20 * MIB
    assert (data / "file").read_bytes() == b"content"


@pytest.mark.needs("seaweedfs")
def test_what_touches_one_path_goes_one_after_another(serve, data, gate, behind_gate, background):
    server = serve(behind_gate, persist_jobs="8")
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    whole = state(tree)
    _change_tree(tree)
    gate.close()
    asked = [background(server.ask, "PUT", str(tree))]
    gate.wait_until_held()
    for number, (verb, path) in enumerate([("PUT", tree), ("GET", tree), ("POST", tree / "folder"), ("GET", data)]):
        asked.append(background(server.ask, verb, str(path)))
        _until(lambda number=number: _jobs(server) == (1, number + 1))
    gate.open()

    answers = [one.result() for one in asked]
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200]
    assert state(tree) == whole
    assert answers[2].json["data"]["bytes_new"] == 0  # the save found what the restores before it had brought back
    (tree / "large").unlink()
    assert server.ask("PUT", str(tree)).json["data"]["tag"] == answers[2].json["data"]["tag"]
    assert state(tree) == whole
    ended = [json.loads(line)["event"] for line in server.log.read_text().splitlines()]
    done = [event for event in ended if event in ("save done", "restore done", "restore failed")]
    assert done[1:4] == ["restore done", "restore done", "save done"]


@pytest.mark.needs("seaweedfs")
def test_asked_twice_it_does_not_wait_for_the_grace(serve, data, gate, behind_gate):
    """Also while it only waits for work whose client has gone."""
    server = serve(behind_gate, serve_grace="10m")
    _make_tree(data / "tree")
    gate.close()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(f"GET {data}/tree HTTP/1.1\r\nHost: here\r\nAccept: application/x-ndjson\r\n\r\n".encode())
        gate.wait_until_held()
    _until(lambda: any(line["event"] == "request" for line in server.logged()))  # its answer was given up
    workers = server.workers()
    os.kill(server.pid, signal.SIGTERM)
    _until(lambda: not answers(f"http://127.0.0.1:{server.port}/-/health"))

    assert server.end() == 1
    _until(lambda: not any(map(_is_there, workers)))


# The processes that do the work


def _is_there(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_worker_that_is_killed_costs_its_own_job_alone(serve, data, gate, behind_gate, background, layout):
    server = serve(behind_gate, layout=layout)
    tree = data / "tree"
    _make_tree(tree)
    assert server.ask("GET", str(tree)).status == 200
    (before,) = server.workers()
    (tree / "large").write_bytes(random_bytes(16 * MIB, 7))
    gate.close()
    held = background(server.ask, "GET", str(tree))
    gate.wait_until_held()
    os.kill(before, signal.SIGKILL)
    answer = held.result(WAIT_S)
    gate.open()

    assert answer.status == 503
    assert "ended with -9" in answer.json["error"]
    assert server.ask("GET", str(tree)).status == 200
    (after,) = server.workers()
    assert after != before
    whole = state(tree)
    shutil.rmtree(tree)
    assert server.ask("PUT", str(tree)).status == 200
    assert state(tree) == whole or layout == "tarball"
    assert server.end() == 0


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_costs_nothing(serve, data, tmp_path):
    server = serve(f"file://{tmp_path}/store")
    _make_tree(data / "tree")
    for _ in range(3):
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
            _until(lambda pid=pid: not _is_there(pid))
        assert server.ask("GET", str(data / "tree")).status == 200
    assert len(server.workers()) == 1


@pytest.mark.needs("seaweedfs")
def test_a_server_that_is_killed_leaves_no_process_behind(serve, data, gate, behind_gate, background):
    server = serve(behind_gate)
    _make_tree(data / "tree")
    gate.close()
    held = background(server.ask, "GET", str(data / "tree"))
    gate.wait_until_held()
    workers = server.workers()
    assert workers
    server.stop()
    with pytest.raises((OSError, http.client.HTTPException)):
        held.result(WAIT_S)

    _until(lambda: not any(map(_is_there, workers)))


@pytest.mark.needs("seaweedfs")
def test_ctrl_c_reaches_all_and_ends_no_work(serve, data, gate, behind_gate, background):
    server = serve(behind_gate)
    _make_tree(data / "tree")
    gate.close()
    held = background(server.ask, "GET", str(data / "tree"))
    gate.wait_until_held()
    for pid in server.workers():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    os.kill(server.pid, signal.SIGINT)
    gate.open()

    assert held.result(WAIT_S).status == 200
    assert server.wait() == 0


@pytest.mark.needs("seaweedfs")
def test_progress_and_warnings_come_through(serve, data, gate, behind_gate, background):
    server = serve(behind_gate)
    _make_tree(data / "tree")
    gate.close()
    held = background(server.ask, "GET", str(data / "tree"), {"Accept": "application/x-ndjson"})
    gate.wait_until_held()
    gate.open()
    gate.close_after(12 * MIB, "in")
    _until(lambda: gate.inwards >= 12 * MIB)
    gate.wait_until_held()
    gate.open()
    lines = held.result(WAIT_S).lines

    assert lines[-1]["success"] is True
    told = [line["progress"] for line in lines[:-1]]
    assert told == sorted(told, key=lambda progress: (progress["files_done"], progress["bytes_done"]))
    assert lines[-1]["data"]["files"] == 43
