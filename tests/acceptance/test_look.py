"""Looking into snapshots: snapshots, ls, diff, find, dump; what people and programs read."""

import json
import os
import pty
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trees import KIB, MIB, assert_same, fingerprint, make_rich, make_small, random_bytes, write, write_sparse


@pytest.fixture
def two(local, source):
    """Two snapshots of a small tree: their tags."""
    make_small(source)
    (source / "b/c.txt").chmod(0o640)
    first = local.backup(source)["tag"]
    write(source / "a.txt", "alpha and more\n")
    (source / "z.log").unlink()
    write(source / "new\nline", "new")
    (source / "b/c.txt").chmod(0o600)
    (source / "link").unlink()
    (source / "link").symlink_to("a.txt")
    return first, local.backup(source)["tag"]


def test_backup_says_what_it_did(local, source):
    make_small(source)

    text = local.run("backup", source)
    document = local.backup(source)

    name, _, tag = text.lines[0].partition("@")
    assert name == str(source)
    assert datetime.strptime(tag[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert "4 files, 5 directories, 300.0 KiB: 300.0 KiB new" in text.lines[1]
    assert document["bytes"] == 300 * KIB + 16
    assert document["digest"].startswith(f"sha256:{document['tag'][-6:]}")
    assert local.run("backup", source, "--quiet").out == b""


@pytest.mark.parametrize("style", ["json", "plain", "none"])
def test_progress_never_reaches_stdout(style, local, source):
    write(source / "big", random_bytes(8 * MIB))

    ran = local.run("backup", source, "--json", "--progress", style)

    assert ran.json["files"] == 1
    if style == "json":
        for line in ran.err.splitlines():
            assert "bytes_done" in json.loads(line)
    elif style == "none":
        assert ran.err == ""


def test_snapshots(two, local, source, tmp_path):
    write(tmp_path / "other/file", "x")
    local.backup(tmp_path / "other")

    mine = local.run("snapshots", source, "--json").json["snapshots"]
    everything = local.run("snapshots", "--json").json["snapshots"]

    assert sorted(one["tag"] for one in mine) == sorted(two)
    assert all(one["name"] == str(source) and one["complete"] for one in mine)
    assert [one["name"] for one in everything].count(str(tmp_path / "other")) == 1
    lines = local.run("snapshots").lines
    assert len(lines) == 3
    assert all(one["tag"] in line and one["name"] in line for one, line in zip(everything, lines, strict=True))
    below = local.run("snapshots", ".", cwd=source).lines  # a path, relative to where one is
    assert below == local.run("snapshots", source).lines


def test_ls(two, local, source):
    first, _ = two

    assert local.run("ls", source).lines == ["a.txt", "b/", "empty/", "link -> a.txt", "new\\nline"]
    assert local.run("ls", f"{source}@{first}").lines == ["a.txt", "b/", "empty/", "link -> b/c.txt", "z.log"]
    assert local.run("ls", source, "b").lines == ["b/c.txt", "b/deep/"]
    assert local.run("ls", source, source / "b/c.txt").lines == ["b/c.txt"]
    assert local.run("ls", "-R", source, "b").lines == ["b/c.txt", "b/deep/", "b/deep/er/", "b/deep/er/d.bin"]
    (line,) = local.run("ls", "-l", source, "b/c.txt").lines
    status = (source / "b/c.txt").stat()
    assert line.split() == [
        "-rw-------", str(status.st_uid), str(status.st_gid), "6",
        *f"{datetime.fromtimestamp(status.st_mtime):%Y-%m-%d %H:%M:%S}".split(), "b/c.txt",  # noqa: DTZ006
    ]  # fmt: skip
    entries = local.run("ls", "-R", source, "--json").json["entries"]
    assert {"path": "new\nline", "kind": "f", "size": 3}.items() <= entries[-1].items()
    assert entries[-1]["mtime_ns"] == (source / "new\nline").stat().st_mtime_ns
    assert "no_such" in local.run("ls", source, "no_such", code=4).err


def test_ls_shows_every_kind(local, source):
    make_rich(source)
    local.backup(source)
    before = fingerprint(source)

    entries = local.run("ls", "-R", source, "--json").json["entries"]
    lines = local.run("ls", "-R", "-l", source).lines

    assert len(entries) == len(lines) == len(before) - 1
    assert {entry["kind"] for entry in entries} >= set("fdlhp")
    assert all(line.isprintable() for line in lines)


def test_diff(two, local, source):
    first, second = two
    expected = ["M a.txt", "U b/c.txt", "M link", "+ new\\nline", "- z.log"]

    changed = local.run("diff", f"{source}@{first}", f"{source}@{second}").lines
    assert changed == ["U .", *expected]  # the directory's own time
    back = local.run("diff", f"{source}@{second}", f"{source}@{first}", "--json").json["differences"]
    assert {(one["change"], one["path"]) for one in back} >= {("removed", "new\nline"), ("added", "z.log")}
    assert local.run("diff", f"{source}@{second}", f"{source}@{second}").out == b""
    live = local.run("diff", f"{source}@{first}").lines
    assert live == changed
    assert local.run("diff", source).out == b""


def test_diff_of_contents_behind_the_same_size_and_time(local, source):
    write(source / "file", "one", mtime_ns=10**18)
    first = local.backup(source)["tag"]
    write(source / "file", "two", mtime_ns=10**18)
    second = local.backup(source)["tag"]

    assert local.run("diff", f"{source}@{first}", f"{source}@{second}").lines == ["M file"]


def test_find(two, local, source, tmp_path):
    first, second = two
    write(tmp_path / "other/d.bin", "x")
    local.backup(tmp_path / "other")

    everywhere = local.run("find", "*.bin", "--json").json["found"]
    assert {(one["name"], one["path"]) for one in everywhere} == {
        (str(source), "b/deep/er/d.bin"),
        (str(tmp_path / "other"), "d.bin"),
    }
    (one,) = local.run("find", "b/*/d.bin", source, "--json").json["found"]
    assert sorted(one["tags"]) == sorted([first, second])
    versions = local.run("find", "a.txt", source, "--json").json["found"]
    assert [(one["size"], one["tags"]) for one in versions] == [(15, [second]), (6, [first])]
    lines = local.run("find", "a.txt", source).lines
    assert len(lines) == 2
    assert "(2 snapshots)" in local.run("find", "d.bin", source).text
    assert local.run("find", "nothing").out == b""


def test_dump_a_file(two, local, source):
    first, _ = two

    assert local.run("dump", source, "a.txt").out == b"alpha and more\n"
    assert local.run("dump", f"{source}@{first}", source / "a.txt").out == b"alpha\n"
    assert local.run("dump", source, "b/deep/er/d.bin").out == random_bytes(300 * KIB, 7)
    assert "z.log" in local.run("dump", source, "z.log", code=4).err
    assert "link" in local.run("dump", source, "link", code=2).err


def test_dump_a_sparse_file_is_all_its_bytes(local, source):
    write_sparse(source / "sparse", 3 * MIB, (MIB, b"middle"))
    write_sparse(source / "hole", MIB)
    local.backup(source)

    assert local.run("dump", source, "sparse").out == bytes(MIB) + b"middle" + bytes(2 * MIB - 6)
    assert local.run("dump", source, "hole").out == bytes(MIB)


@pytest.mark.needs("tar")
@pytest.mark.parametrize("part", ["/", "links"])
def test_dump_a_directory_for_gnu_tar(part, local, source, tmp_path):
    make_rich(source)
    shutil.rmtree(source / "deep")  # GNU tar cannot write such paths
    local.backup(source)
    (tmp_path / "out").mkdir()

    with local.start("dump", source, part) as dump:
        options = ["--numeric-owner", "-p", "--xattrs", "--xattrs-include=*", "--warning=no-timestamp"]
        subprocess.run(["tar", "x", *options], cwd=tmp_path / "out", stdin=dump.stdout, check=True, capture_output=True)
        assert dump.wait() == 0

    expected = fingerprint(source if part == "/" else source / part, lacking=("data",))
    found = fingerprint(tmp_path / "out", lacking=("data",))
    for facts in (*expected.values(), *found.values()):
        facts["mtime_ns"] //= 10**9  # tar's are whole seconds
        facts["xattrs"] = {name: value for name, value in facts["xattrs"].items() if name.startswith("user.")}
    assert_same(expected, found)


def test_dump_a_directory_with_links_out_of_it(local, source, tmp_path):
    write(source / "a/first", "linked")
    (source / "b").mkdir()
    for name in ("one", "two"):
        (source / "b" / name).hardlink_to(source / "a/first")
    local.backup(source)

    archive = local.run("dump", source, "b").out
    subprocess.run(["tar", "x"], cwd=tmp_path, input=archive, check=True)

    assert (tmp_path / "one").read_text() == "linked"
    assert (tmp_path / "one").samefile(tmp_path / "two")


def test_dump_to_a_reader_that_stops(local, source):
    write(source / "big", random_bytes(4 * MIB))
    local.backup(source)

    with local.start("dump", source, "big") as dump:
        dump.stdout.read(10)
        dump.stdout.close()
        assert dump.stderr.read() == b""
        assert dump.wait() == 1


def test_a_terminal_sees_a_bar_and_no_raw_bytes(local, source):
    write(source / "binary", bytes(1000))
    local.backup(source)
    ours, theirs = pty.openpty()
    try:
        with local.start("dump", source, "binary") as refused:
            assert refused.wait() == 0  # a pipe takes anything
        command = subprocess.run(
            [*refused.args[:-3], "dump", str(source), "binary"],
            stdout=theirs, stderr=subprocess.PIPE, env={**os.environ, "HOLDFAST_STORE": local.store}, check=False,
        )  # fmt: skip
    finally:
        os.close(theirs)
        os.close(ours)

    assert command.returncode == 2
    assert b"redirect" in command.stderr


PROGRAM = Path(sys.executable).with_name("holdfast")


@pytest.mark.skipif(not PROGRAM.exists(), reason="completion is for the installed program")
def test_shell_completion():
    env = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}

    def run(*command, **more):
        done = subprocess.run(command, env={**env, **more}, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.stdout

    for shell in ("bash", "zsh", "fish"):
        assert "holdfast" in run(PROGRAM, _HOLDFAST_COMPLETE=f"source_{shell}")
    script = """
        source /dev/stdin <<< "$(_HOLDFAST_COMPLETE=source_bash holdfast)"
        for words in "holdfast re" "holdfast backup --excl"; do
            COMP_WORDS=($words); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _holdfast_completion holdfast; echo ${COMPREPLY[@]}
        done"""
    assert run("bash", "-c", script).splitlines() == ["restore", "--exclude --exclude-caches"]


def test_help_and_version(local):
    text = local.run("--help").text
    for command in ("backup", "restore", "snapshots", "ls", "diff", "find", "dump"):
        assert command in text
        assert "Usage: " in local.run(command, "--help").text
    assert local.run("--version").text.startswith("holdfast ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["backup"],
        ["backup", "--nonsense", "x"],
        ["restore", "x", "--mode", "x"],
        ["ls", "a", "b", "c"],
    ],
)
def test_a_wrong_command_line_is_explained(arguments, local):
    ran = local.run(*arguments, code=2)

    assert ran.out == b""
    assert "Usage: " in ran.err
