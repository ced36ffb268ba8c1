"""Several processes work on one bucket with no coordinator."""

import json

import pytest

from commandline import Holdfast
from trees import MIB, assert_same, fingerprint, make_small, random_bytes, write


@pytest.mark.parametrize("kind", ["s3", "file"])
@pytest.mark.parametrize("parent", [False, True])
def test_two_backups_of_one_source_at_once(kind, parent, request, tmp_path):
    url = request.getfixturevalue("make_s3_bucket")("pre/fix").url if kind == "s3" else f"file://{tmp_path}/store"
    holdfast = Holdfast(url)
    source = make_small(tmp_path / "source")
    if parent:
        holdfast.backup(source)
    write(source / "big", random_bytes(30 * MIB))
    before = fingerprint(source)

    # Caches of their own, as on two hosts.
    running = [
        holdfast.start("backup", source, "--json", env={"XDG_CACHE_HOME": str(tmp_path / f"cache-{number}")})
        for number in range(2)
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in running]

    assert [code for _, _, code in ended] == [0, 0], ended
    assert [err for _, err, _ in ended] == [b"", b""]
    tags = {json.loads(out)["tag"] for out, _, _ in ended}
    assert tags <= {one["tag"] for one in holdfast.run("snapshots", source, "--json").json["snapshots"]}
    for number, tag in enumerate([*tags, "latest"]):
        restored = holdfast.restore(source, "--snapshot", tag, "--target", tmp_path / f"back-{number}")
        assert_same(before, fingerprint(tmp_path / f"back-{number}"))
        if tag == "latest":
            assert restored["digest"] in {json.loads(out)["digest"] for out, _, _ in ended}
    assert holdfast.backup(source)["bytes_read"] == 0


def test_restores_and_a_backup_at_once(s3_bucket, tmp_path):
    holdfast = Holdfast(s3_bucket.url)
    source = make_small(tmp_path / "source")
    write(source / "big", random_bytes(10 * MIB))
    holdfast.backup(source)
    before = fingerprint(source)

    running = [holdfast.start("restore", source, "--target", tmp_path / f"back-{number}") for number in range(3)]
    running.append(holdfast.start("backup", source))
    for process in running:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")

    for number in range(3):
        assert_same(before, fingerprint(tmp_path / f"back-{number}"))
