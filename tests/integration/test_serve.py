"""The persist face as its users know it: requests to a running server, its answers, and what became of the files."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backups import contents, leftovers, state
from commandline import Holdfast
from serving import Serving
from trees import assert_same, fingerprint, make_rich

NDJSON = {"Accept": "application/x-ndjson"}
DIALECTS = {
    "get-saves": {"save": "GET", "replace": "PUT", "merge": "POST"},
    "put-saves": {"save": "PUT", "replace": "POST", "merge": "GET"},
}


@pytest.fixture
def volume(tmp_path):
    """A directory that plays a volume, with something in it."""
    root = tmp_path / "volume"
    (root / "www/sub").mkdir(parents=True)
    (root / "www/index.html").write_bytes(b"<p>kelp</p>")
    (root / "www/index.html").chmod(0o4751)
    (root / "www/sub/large").write_bytes(os.urandom(300_000))
    (root / "www/link").symlink_to("sub/large")
    return root


@pytest.fixture
def serve(tmp_path, volume):
    """serve(**environment): a server with a store in a directory, whose root is the volume."""
    started = []

    def start(*arguments, **env):
        settings = {"HOLDFAST_STORE": f"file://{tmp_path}/store", "HOLDFAST_PERSIST_ROOTS": str(volume), **env}
        started.append(Serving(tmp_path, {name: value for name, value in settings.items() if value}, *arguments))
        return started[-1]

    yield start
    for serving in started:
        serving.stop()


def _ok(answer):
    assert answer.status == 200, answer.body
    assert answer.json["success"] is True
    return answer.json["data"]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("layout", ["registry", "tarball"])
@pytest.mark.parametrize("verbs", DIALECTS)
def test_a_directory_is_saved_and_restored(serve, volume, verbs, layout, slash):
    verb = DIALECTS[verbs]
    server = serve(HOLDFAST_PERSIST_VERBS=verbs, HOLDFAST_LAYOUT=layout)
    www = volume / "www"
    path = f"{www}{slash}"
    before = state(www)
    saved = _ok(server.ask(verb["save"], path))
    assert (saved["files"], saved["directories"], saved["others"]) == (2, 2, 1)
    assert saved["Key"] == saved["key"]
    assert saved["Key"] in saved["Location"]
    assert saved["ETag"]

    shutil.rmtree(www)
    merged = _ok(server.ask(verb["merge"], path))
    assert merged["written"] == 2
    assert _comparable(state(www), layout) == _comparable(before, layout)

    (www / "index.html").write_bytes(b"changed")
    (www / "surplus").write_bytes(b"other")
    merged = _ok(server.ask(verb["merge"], path))
    assert merged["deleted"] == []
    assert (www / "surplus").read_bytes() == b"other"
    assert (www / "index.html").read_bytes() == b"<p>kelp</p>"

    replaced = _ok(server.ask(verb["replace"], path))
    assert replaced["deleted"] == ["surplus"]
    assert _comparable(state(www), layout) == _comparable(before, layout)
    assert leftovers(volume) == []


def _comparable(found, layout):
    """The layout tarball keeps times to the second, as the old program did."""
    if layout == "registry":
        return found
    return {path: (*entry[:4], entry[4] // 10**9, *entry[5:]) for path, entry in found.items()}


@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_a_file_is_saved_and_restored(serve, volume, layout):
    server = serve(HOLDFAST_LAYOUT=layout)
    file = volume / "www/index.html"
    before = contents(volume)
    assert _ok(server.ask("GET", str(file)))["files"] == 1
    for verb in ("PUT", "POST"):
        file.unlink()
        (volume / "www/neighbour").write_bytes(b"stays")
        assert _ok(server.ask(verb, str(file)))["written"] == 1
        assert stat.S_IMODE(file.stat().st_mode) == 0o4751
        assert contents(volume) == {**before, "www/neighbour": b"stays"}


def test_names_of_every_kind(serve, volume):
    server = serve()
    for name, encoded in (
        (b"with space", "with%20space"),
        (b"\xff\xfe", "%ff%fe"),
        ("ünï".encode(), "%C3%BCn%C3%AF"),
        (b"100%", "100%25"),
        (b"a?b#c", "a%3Fb%23c"),
        (b"..x", "..x"),
        (b"line\nfeed", "line%0Afeed"),
    ):
        folder = os.fsencode(volume) + b"/" + name
        os.mkdir(folder)
        with open(folder + b"/file", "wb") as file:
            file.write(name)
        _ok(server.ask("GET", f"{volume}/{encoded}"))
        os.unlink(folder + b"/file")
        _ok(server.ask("PUT", f"{volume}/./nothing/../{encoded}//"))
        with open(folder + b"/file", "rb") as file:
            assert file.read() == name


def test_older_snapshots(serve, volume):
    server = serve()
    www, file = volume / "www", volume / "www/index.html"
    first = _ok(server.ask("GET", str(www)))
    file.write_bytes(b"second")
    second = _ok(server.ask("GET", str(www)))
    history = server.ask("GET", f"/-/snapshots{www}").json
    assert [listed["tag"] for listed in history["snapshots"]] == [first["tag"], second["tag"]]
    assert history["tarball"] is None

    assert _ok(server.ask("PUT", f"{www}?snapshot={first['tag']}"))["tag"] == first["tag"]
    assert file.read_bytes() == b"<p>kelp</p>"
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat().replace("+", "%2B")
    assert _ok(server.ask("PUT", f"{www}?at={later}"))["tag"] == second["tag"]
    assert file.read_bytes() == b"second"
    assert server.ask("PUT", f"{www}?at=2001-01-01").status == 404
    assert server.ask("PUT", f"{www}?snapshot=20010101T000000Z-abcdef").status == 404
    assert file.read_bytes() == b"second"


def test_what_is_asked_wrongly(serve, volume):
    server = serve()
    www = str(volume / "www")
    os.mkfifo(volume / "fifo")
    before = contents(volume / "www")
    for method, path, status in (
        ("GET", f"{volume}/nothing", 404),
        ("PUT", www, 404),
        ("POST", www, 404),
        ("GET", f"{volume}/fifo", 400),
        ("GET", "/etc/passwd", 403),
        ("PUT", "/etc", 403),
        ("POST", f"{volume}-other", 403),
        ("GET", "/", 403),
        ("GET", "/../etc", 400),
        ("GET", f"{www}/%00", 400),
        ("GET", f"{www}/{'x' * 300}", 400),
        ("GET", f"{volume}/{'x/' * 5000}", 400),
        ("GET", f"{www}?snapshot=latest", 400),
        ("PUT", f"{www}?snapsot=latest", 400),
        ("PUT", f"{www}?snapshot=latest&at=2026-01-01", 400),
        ("PUT", f"{www}?at=yesterday", 400),
        ("PUT", f"{www}?at=0001-01-01", 400),
        ("PUT", f"{www}?at=9999-12-31T23:59:59-23:00", 400),
        ("DELETE", www, 405),
        ("HEAD", www, 405),
        ("OPTIONS", www, 405),
        ("POST", "/-/health", 405),
        ("GET", "/-/nothing", 404),
        ("GET", "/-/snapshots/etc", 403),
    ):
        answer = server.ask(method, path)
        assert answer.status == status, (method, path[:100], answer.body)
        if method != "HEAD":
            assert answer.json["error"], path
        if status == 405:
            assert "GET" in answer.headers["allow"]
    assert contents(volume / "www") == before
    assert server.ask("GET", f"/-/snapshots{www}").json["snapshots"] == []


def test_the_store_in_a_root_is_not_for_requests(serve, volume):
    store = volume / "www/store"
    server = serve(HOLDFAST_STORE=f"file://{store}")
    _ok(server.ask("GET", f"{volume}/www"))
    before = contents(store)

    for method, path in (("GET", store), ("PUT", store / "docker"), ("POST", store / "docker/registry")):
        assert server.ask(method, str(path)).status == 403
    assert server.ask("GET", f"/-/snapshots{store}").status == 403
    assert contents(store) == before
    _ok(server.ask("PUT", f"{volume}/www"))
    assert contents(store) == before


@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_the_files_of_one_directory_at_once(serve, volume, layout):
    server = serve(HOLDFAST_LAYOUT=layout)
    names = [f"{volume}/{number}" for number in range(8)]
    for name in names:
        Path(name).write_bytes(os.urandom(2_000_000))
        _ok(server.ask("GET", name))
    before = contents(volume)
    for name in names:
        os.unlink(name)

    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(pool.map(lambda name: server.ask("PUT", name), names))

    assert [answer.status for answer in answers] == [200] * len(names)
    assert contents(volume) == before


def test_a_look_into_a_bucket_that_is_silent_does_not_keep_the_server(serve, volume):
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        server = serve(
            HOLDFAST_STORE=f"s3://bucket?endpoint=http://127.0.0.1:{silent.getsockname()[1]}",
            HOLDFAST_SERVE_GRACE="100ms",
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            AWS_DEFAULT_REGION="us-east-1",
        )
        asked = pool.submit(server.ask, "GET", f"/-/snapshots{volume}/www")
        connection, _ = silent.accept()
        with connection:
            assert server.end() == 0
            assert asked.result().status == 503


def test_it_takes_as_many_open_files_as_it_is_given(serve):
    """Each restore may have some 250 open; where the limit is 1,024, as often, eight at once would fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        server = serve()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)


def test_progress_as_it_goes(serve, volume):
    server = serve()
    www = volume / "www"
    saved = server.ask("GET", str(www), NDJSON)
    assert saved.headers["content-type"] == "application/x-ndjson"
    *progress, result = saved.lines
    assert all(set(line) == {"progress"} for line in progress)
    assert progress
    assert result["success"] is True
    assert result["data"]["files"] == 2
    *progress, result = server.ask("PUT", f"{volume}/nothing", NDJSON).lines
    assert result["status"] == 404
    assert "error" in result


def test_a_token(serve, volume, tmp_path):
    (tmp_path / "token").write_text("open-sesame\n")
    server = serve(HOLDFAST_PERSIST_TOKEN_FILE=str(tmp_path / "token"))
    www = str(volume / "www")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic open-sesame"}):
        for path in (www, "/-/metrics", f"/-/snapshots{www}"):
            answer = server.ask("GET", path, headers)
            assert answer.status == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
    assert server.ask("GET", "/-/health").status == 200
    _ok(server.ask("GET", www, {"Authorization": "Bearer open-sesame"}))
    assert "open-sesame" not in server.log.read_text()


@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_web_page_cannot_ask(serve, volume, header):
    server = serve()
    assert server.ask("POST", str(volume / "www"), header).status == 403


def test_metrics_and_logs(serve, volume):
    server = serve()
    www = str(volume / "www")
    _ok(server.ask("GET", www))
    _ok(server.ask("PUT", www))
    server.ask("POST", f"{volume}/nothing%0Aforged")
    metrics = server.ask("GET", "/-/metrics").body.decode()
    for line in (
        'holdfast_jobs_total{kind="save",result="ok"} 1.0',
        'holdfast_jobs_total{kind="restore",result="ok"} 1.0',
        'holdfast_jobs_total{kind="restore",result="failed"} 1.0',
        'holdfast_requests_total{face="persist",method="PUT",status="200"} 1.0',
        'holdfast_requests_total{face="persist",method="POST",status="404"} 1.0',
        "holdfast_jobs_running 0.0",
    ):
        assert line in metrics.splitlines()
    assert "volume" not in metrics
    logged = server.logged()
    requests = [line for line in logged if line["event"] == "request"]
    assert [(line["method"], line["status"]) for line in requests][:3] == [("GET", 200), ("PUT", 200), ("POST", 404)]
    assert requests[0]["path"] == www
    jobs = [line["event"] for line in logged if line["event"].startswith(("save", "restore"))]
    assert jobs == ["save done", "restore done", "restore failed"]
    assert server.end() == 0
    assert [line["event"] for line in server.logged()][-2:] == ["stopping", "stopped"]


def test_many_ask_for_the_same_save(serve, volume):
    server = serve()
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.ask("GET", str(volume / "www")))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tags = {_ok(answer)["tag"] for answer in answers}
    assert len(answers) == 16
    listed = server.ask("GET", f"/-/snapshots{volume}/www").json["snapshots"]
    assert {snapshot["tag"] for snapshot in listed} == tags


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("compress", ["true", "false"])
def test_the_old_environment_alone(serve, volume, make_s3_bucket, compress):
    bucket = make_s3_bucket(create=False)
    server = serve(
        HOLDFAST_STORE=None,
        S3_BUCKET_NAME=bucket.name,
        AWS_ENDPOINT_URL_S3=bucket.endpoint,
        COMPRESS=compress,
        **bucket.env,
    )
    assert not bucket.exists()
    www = volume / "www"
    before = state(www)
    saved = _ok(server.ask("GET", f"{www}/"))
    assert saved["Bucket"] == bucket.name
    assert saved["Key"] in set(bucket.keys())
    shutil.rmtree(www)
    _ok(server.ask("PUT", f"{www}/"))
    assert state(www) == before
    assert saved["tag"] in Holdfast(bucket.url).run("snapshots", www).text


@pytest.mark.needs("seaweedfs")
@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_on_s3_the_command_line_and_the_server_are_one(serve, volume, s3_bucket, layout, tmp_path):
    server = serve(HOLDFAST_STORE=s3_bucket.url, HOLDFAST_LAYOUT=layout)
    www = volume / "www"
    command = Holdfast(s3_bucket.url, {"HOLDFAST_LAYOUT": layout})
    before = state(www)
    _ok(server.ask("GET", str(www)))
    command.run("restore", www, "--target", tmp_path / "by-command")
    assert _comparable(state(tmp_path / "by-command"), layout) == _comparable(before, layout)

    (www / "index.html").write_bytes(b"by the command line")
    command.run("backup", www)
    (www / "index.html").unlink()
    _ok(server.ask("PUT", str(www)))
    assert (www / "index.html").read_bytes() == b"by the command line"


@pytest.mark.needs("seaweedfs")
def test_an_object_of_the_old_program_is_found(serve, volume, s3_bucket, tmp_path):
    www = volume / "www"
    Holdfast(s3_bucket.url, {"HOLDFAST_LAYOUT": "tarball"}).run("backup", www)
    server = serve(HOLDFAST_STORE=s3_bucket.url)
    listed = server.ask("GET", f"/-/snapshots{www}").json
    assert listed["tarball"]["key"] == str(www).strip("/")
    (www / "index.html").write_bytes(b"changed")
    assert _ok(server.ask("PUT", str(www)))["key"] == str(www).strip("/")
    assert (www / "index.html").read_bytes() == b"<p>kelp</p>"

    (www / "index.html").write_bytes(b"a snapshot comes first")
    _ok(server.ask("GET", str(www)))
    (www / "index.html").unlink()
    assert "tag" in _ok(server.ask("PUT", str(www)))
    assert (www / "index.html").read_bytes() == b"a snapshot comes first"


@pytest.mark.parametrize("layout", ["registry", "tarball"])
def test_what_is_excluded_is_neither_saved_nor_deleted(serve, volume, layout):
    server = serve(HOLDFAST_PERSIST_EXCLUDE="*.tmp:cache/", HOLDFAST_LAYOUT=layout)
    www = volume / "www"
    (www / "cache").mkdir()
    (www / "cache/x").write_bytes(b"x")
    (www / "y.tmp").write_bytes(b"y")
    assert _ok(server.ask("GET", str(www)))["files"] == 2
    assert _ok(server.ask("PUT", str(www)))["deleted"] == []
    assert (www / "cache/x").read_bytes() == b"x"
    assert (www / "y.tmp").read_bytes() == b"y"


def test_a_whole_tree_with_all_its_metadata(serve, tmp_path, volume):
    tree = volume / "tree"
    make_rich(tree)
    before = fingerprint(tree)
    server = serve()
    _ok(server.ask("GET", str(tree)))
    shutil.rmtree(tree)
    _ok(server.ask("PUT", str(tree)))

    assert_same(before, fingerprint(tree))


def test_a_configuration_file(serve, volume, tmp_path):
    (tmp_path / "config.yaml").write_text(
        f"store: file://{tmp_path}/elsewhere\nlog: {{format: text}}\npersist: {{verbs: put-saves, roots: [{volume}]}}\n"
    )
    server = serve(
        "--config",
        str(tmp_path / "config.yaml"),
        HOLDFAST_STORE=None,
        HOLDFAST_PERSIST_ROOTS=None,
    )
    _ok(server.ask("PUT", str(volume / "www")))
    assert (tmp_path / "elsewhere/docker").is_dir()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"HOLDFAST_PERSIST_ROOTS": "relative"}, ["HOLDFAST_PERSIST_ROOTS"]),
        ({"HOLDFAST_PERSIST_VERBS": "post-saves"}, ["get-saves"]),
        ({"HOLDFAST_STORE": "memory://x"}, ["memory://"]),
        ({"HOLDFAST_LAYOUT": "dogestry"}, ["dogestry"]),
        ({"HOLDFAST_PERSIST_LISTEN": "203.0.113.1:1"}, ["cannot listen on 203.0.113.1:1"]),
    ],
)
def test_a_server_that_cannot_start_says_why(tmp_path, env, words):
    settings = {"HOLDFAST_PERSIST_ROOTS": str(tmp_path), **env}
    ran = Holdfast(env.get("HOLDFAST_STORE", f"file://{tmp_path}/store"), settings).run("serve", code=2)
    for word in words:
        assert word in ran.err
