"""Killed or interrupted at any moment: what was there is there, and the next run just works."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backups import Rig, contents, leftovers, state
from holdfast.errors import BusyError, exit_code
from holdfast.model.urls import BucketUrl
from holdfast.storage.backends import open_bucket
from holdfast.storage.store import Store
from holdfast.volumes.snapshots import list_snapshots

COMMAND = [sys.executable, "-m", "holdfast"]
CRASHING = Path(__file__).with_name("crashing.py")


def _run(*arguments, **given):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, **given)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("what", ["backups", "restores"])
@pytest.mark.timeout(300)
def test_a_process_that_dies_at_any_step(tmp_path, what):
    done = subprocess.run(
        [sys.executable, CRASHING, what, tmp_path], capture_output=True, text=True, timeout=280, check=False
    )

    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) > 20


@pytest.fixture
def tree(tmp_path):
    """Some 25 MB of files of every size, which do not compress."""
    source = tmp_path / "source"
    rng = random.Random(5)
    for number in range(300):
        folder = source / f"{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(rng.randbytes(rng.choice([0, 10, 3_000, 50_000])))
    (source / "large").write_bytes(rng.randbytes(20_000_000))
    return source


def _killed_after(delay_s, arguments, how=signal.SIGKILL, **given):
    """Start a command and end it after a while; its exit code, standard output and error."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
    )
    try:
        output = process.communicate(timeout=delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(how)
        output = process.communicate(timeout=60)
    return process.returncode, *output


def _all_restore(url, tmp_path, expected):
    """Every snapshot that is visible restores whole."""
    rig = Rig(tmp_path / "looking", open_bucket(BucketUrl.parse(url)))
    for listed in list_snapshots(Store(rig.bucket)):
        rig.fresh_cache()
        target = rig.new_target()
        rig.restore(target, listed.tag.name)
        assert state(target) in expected
        shutil.rmtree(target)


def _kill_backups(url, tree, tmp_path, times, longest_s):
    rng = random.Random(len(url))
    expected = [state(tree)]
    killed = 0
    for number in range(10 * times):
        if number >= times and killed:
            break
        code, _, error = _killed_after(
            rng.uniform(0.1, longest_s), ["backup", str(tree), "--store", url, "--name", "trial"]
        )
        assert code in (0, -signal.SIGKILL), error
        killed += code != 0
        if code == 0:  # a machine that is faster than thought
            longest_s = max(0.12, 0.85 * longest_s)
        if number % 5 == 0:
            _all_restore(url, tmp_path, expected)
        if code == 0:
            for path in tree.rglob("large"):  # something to do for the next one
                path.write_bytes(rng.randbytes(20_000_000))
            expected.append(state(tree))
    _run("backup", str(tree), "--store", url, "--name", "trial")
    target = tmp_path / "restored"
    _run("restore", "trial", "--store", url, "--target", str(target))
    assert state(target) == state(tree)
    assert killed
    return killed


def test_backups_killed_at_random_into_a_directory(tree, tmp_path):
    _kill_backups(f"file://{tmp_path}/store", tree, tmp_path, 14, 0.5)
    assert len(list((tmp_path / "store" / ".holdfast-tmp").iterdir())) < 14 * 4


@pytest.mark.needs("seaweedfs")
def test_backups_killed_at_random_into_s3(tree, tmp_path, s3_bucket):
    _kill_backups(s3_bucket.url, tree, tmp_path, 10, 0.9)


@pytest.mark.parametrize("where", ["directory", pytest.param("s3", marks=pytest.mark.needs("seaweedfs"))])
def test_restores_killed_at_random(tree, tmp_path, where, request):
    url = f"file://{tmp_path}/store" if where == "directory" else request.getfixturevalue("s3_bucket").url
    _run("backup", str(tree), "--store", url, "--name", "trial")
    rng = random.Random(3)
    target = tmp_path / "target"
    (target / "0").mkdir(parents=True)
    (target / "0" / "surplus").write_bytes(b"precious")
    killed = 0
    for number in range(60):
        if number >= 10 and killed:
            break
        before = contents(target)
        code, _, error = _killed_after(
            rng.uniform(0.1, 0.45), ["restore", "trial", "--store", url, "--target", str(target)]
        )
        assert code in (0, -signal.SIGKILL), error
        killed += code != 0
        after = contents(target)
        if code and "0/surplus" in before and "0/surplus" not in after:  # deleted last, once all the rest was there
            assert {name: content for name, content in after.items() if ".holdfast-" not in name} == contents(tree)
        elif code:
            assert {name for name in before if ".holdfast-" not in name} <= set(after)
        if code == 0:
            shutil.rmtree(target)
            target.mkdir()
    _run("restore", "trial", "--store", url, "--target", str(target))

    assert state(target) == state(tree)
    assert killed


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_says_so_and_leaves_nothing_visible(tree, tmp_path, how):
    url = f"file://{tmp_path}/store"
    rng = random.Random(9)
    expected = [state(tree)]
    interrupted = 0
    shortest_s, longest_s = 0.15, 0.45
    for number in range(60):
        if number >= 5 and interrupted:
            break
        delay_s = rng.uniform(shortest_s, longest_s)
        code, output, error = _killed_after(
            delay_s, ["backup", str(tree), "--store", url, "--name", "trial", "--json"], how
        )
        if code == -how:  # Python had not even begun
            shortest_s *= 1.1
        elif code == 0:
            longest_s = max(1.1 * shortest_s, 0.85 * longest_s)
        if code in (0, -how):
            (tree / "large").write_bytes(rng.randbytes(20_000_000))
            expected.append(state(tree))
            continue
        interrupted += 1
        assert code == 130, error
        assert json.loads(output)["exit_code"] == 130
        assert "Traceback" not in error
        _all_restore(url, tmp_path, expected)
    _run("backup", str(tree), "--store", url, "--name", "trial")
    _run("restore", "trial", "--store", url, "--target", str(tmp_path / "target"))

    assert state(tmp_path / "target") == state(tree)
    assert interrupted


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_leaves_no_half_written_file(tree, tmp_path, how):
    url = f"file://{tmp_path}/store"
    _run("backup", str(tree), "--store", url, "--name", "trial")
    whole = contents(tree)
    rng = random.Random(11)
    interrupted = 0
    for number in range(40):
        if number >= 8 and interrupted:
            break
        delay_s = rng.uniform(0.12, 0.4)
        target = tmp_path / f"target-{number}"
        (target / "0").mkdir(parents=True)
        for name in ("0/surplus", "0/10", "large"):
            (target / name).write_bytes(b"older")
        before = contents(target)
        code, _, error = _killed_after(delay_s, ["restore", "trial", "--store", url, "--target", str(target)], how)
        if code not in (0, -how):
            interrupted += 1
            assert code == 130, error
            assert "Traceback" not in error
            after = contents(target)
            assert leftovers(target) == []
            if "0/surplus" not in after:  # deleted last, once all the rest was there
                assert after == whole
                del before["0/surplus"]
            for name, content in before.items():
                assert after[name] in (content, whole.get(name))
            for name, content in after.items():
                assert content in (whole.get(name), before.get(name)), name
        _run("restore", "trial", "--store", url, "--target", str(target))
        assert state(target) == state(tree)
    assert interrupted


def test_two_restores_into_one_target(tmp_path):
    rig = Rig(tmp_path)
    (rig.source / "a").write_bytes(b"kelp")
    rig.backup()
    target = tmp_path / "target"
    target.mkdir()
    import fcntl  # noqa: PLC0415

    held = os.open(target, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(BusyError) as caught:
            rig.restore(target)
        assert exit_code(caught.value) == 1
        assert contents(target) == {}
    finally:
        os.close(held)

    rig.restore(target)
    assert state(target) == state(rig.source)
