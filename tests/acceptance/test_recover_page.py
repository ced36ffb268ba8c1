"""docs/howto/recover-without-holdfast.md does what it says: its code blocks are run as they stand there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commandline import Holdfast
from trees import KIB, MIB, assert_same, fingerprint, make_rich, random_bytes, rewrite, write, write_sparse

PAGE = Path(__file__).parents[2] / "docs/howto/recover-without-holdfast.md"
BLOCKS = dict(re.findall(r"^```(?:sh|bash|python) (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))

pytestmark = pytest.mark.needs("tar", "zstd")


def _follow(blocks, place, env):
    """Run code blocks of the page in a directory, with nothing of Holdfast at hand."""
    (place / "recover.py").write_text(BLOCKS["recover.py"])
    shell = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"} | {name: str(value) for name, value in env.items()}
    for block in blocks:
        done = subprocess.run(
            ["bash", "-eu"], input=BLOCKS[block].encode(), cwd=place, env=shell, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert [line for line in done.stderr.splitlines() if b" time stamp " not in line] == []
    return done.stdout.decode()


def _choose(local, source, tmp_path, tag="latest"):
    store = local.store.removeprefix("file://")
    listing = _follow(["list"], tmp_path, {"BUCKET": store})
    places = dict(line.split("  ", 1) for line in listing.splitlines())
    (link,) = [link for link in places if f"/{tag}/" in link]
    assert places[link] == f'"io.holdfast.source": "{source}"'
    chosen = dict(word.split("=") for word in BLOCKS["choose"].split()[1:])
    chosen |= {"BUCKET": store, "TAG": tag, "TARGET": str(tmp_path / "recovered")}
    chosen["REPOSITORY"] = link.removeprefix("./").partition("/_manifests/")[0]
    return chosen


def test_the_program_on_the_page_is_short_and_needs_nothing():
    code = BLOCKS["recover.py"]
    modules = {name.strip() for line in re.findall(r"^import (.*)$", code, re.MULTILINE) for name in line.split(",")}

    assert modules <= sys.stdlib_module_names
    assert len([line for line in code.splitlines() if line.strip()]) <= 80


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_any_snapshot_of_a_chain_is_rebuilt_exactly(compression, local, source, tmp_path):
    make_rich(source)
    write(source / "large", random_bytes(20 * MIB, 1))
    write_sparse(source / "holey", 30 * MIB, (MIB, random_bytes(2 * MIB, 2)), (29 * MIB, b"late"))
    expected = {}
    for step in range(3):
        write(source / f"step-{step}", random_bytes(100 * KIB, step))
        rewrite(source / "large", (5 + step) * MIB, random_bytes(50 * KIB, 50 + step))
        rewrite(source / "holey", (9 + step) * MIB, b"no hole any more")
        if step == 2:
            (source / "step-0").unlink()
            (source / "links/first").unlink()
            (source / "large").rename(source / "renamed")
        tag = local.backup(source, "--compression", compression)["tag"]
        expected[tag] = fingerprint(source)

    for tag, before in expected.items():
        _follow(["rebuild"], tmp_path, _choose(local, source, tmp_path, tag))
        assert_same(before, fingerprint(tmp_path / "recovered"))
        shutil.rmtree(tmp_path / "recovered")
    assert len(list(tmp_path.glob("tmp*"))) == 0


def test_a_file_of_many_chunks_and_a_source_that_is_one_file(local, source, tmp_path):
    """More than 1,024 chunks go on in further entries of the index."""
    pieces = [(at * 64 * KIB, b"%d" % at) for at in range(2500)]
    write_sparse(source / "comb", 2500 * 64 * KIB, *pieces)
    before = fingerprint(source)
    local.backup(source / "comb")

    _follow(["rebuild"], tmp_path, _choose(local, source / "comb", tmp_path))

    after = fingerprint(tmp_path / "recovered")
    assert_same({b"comb": before[b"comb"]}, {b"comb": after[b"comb"]})


def test_an_altered_blob_is_noticed(local, source, tmp_path):
    write(source / "file", random_bytes(MIB))
    local.backup(source)
    chosen = _choose(local, source, tmp_path)
    blob = max((tmp_path / "store").rglob("data"), key=lambda path: path.stat().st_size)
    rewrite(blob, MIB // 2, b"altered")

    with pytest.raises(AssertionError, match="is altered"):
        _follow(["rebuild"], tmp_path, chosen)


def test_the_quick_way_for_a_first_backup(local, source, tmp_path):
    make_rich(source)
    shutil.rmtree(source / "deep")
    write(source / "large file", random_bytes(40 * MIB))
    shutil.rmtree(source / ".holdfast")
    (source / "sparse/zeros").unlink()
    _leave_out_what_the_page_excepts(source)
    local.backup(source)

    _follow(["quick", "join"], tmp_path, _choose(local, source, tmp_path))

    recovered = tmp_path / "recovered"
    shutil.rmtree(recovered / ".holdfast")
    before, after = fingerprint(source, lacking=("data",)), fingerprint(recovered, lacking=("data",))
    for facts in (*before.values(), *after.values()):
        facts["xattrs"] = {name: value for name, value in facts["xattrs"].items() if name.startswith("user.")}
        facts["mtime_ns"] = 0 if facts["kind"] == "directory" else facts["mtime_ns"] // 10**9
    assert_same(before, after)


def _leave_out_what_the_page_excepts(source):
    seen = {}
    for path, facts in fingerprint(source).items():
        if facts["kind"] == "file" and facts["size"]:
            twin = seen.setdefault(facts["sha256"], facts["names"]) is not facts["names"]
            if twin or not facts["data"] or facts["data"][-1][1] < facts["size"]:
                (source / os.fsdecode(path)).unlink()


@pytest.mark.needs("rclone")
def test_a_bucket_copied_with_rclone(s3_bucket, source, tmp_path):
    write(source / "file", "content")
    (source / "link").symlink_to("file")
    Holdfast(f"s3://{s3_bucket.name}/some/prefix?endpoint={s3_bucket.endpoint}").backup(source)
    before = fingerprint(source)
    remote = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": s3_bucket.endpoint}
    env = {f"RCLONE_CONFIG_REMOTE_{name}": value for name, value in remote.items()} | s3_bucket.env
    place = f"remote:{s3_bucket.name}/some/prefix"
    script = BLOCKS["copy"].replace("remote:bucket/prefix", place)
    env |= {"PATH": os.environ["PATH"], "BUCKET": str(tmp_path / "copy"), "HOME": str(tmp_path)}
    subprocess.run(["bash", "-eu"], input=script.encode(), env=env, check=True, capture_output=True)

    _follow(["rebuild"], tmp_path, _choose(Holdfast(f"file://{tmp_path}/copy"), source, tmp_path))

    assert_same(before, fingerprint(tmp_path / "recovered"))
