"""Memory does not grow with what is backed up and restored."""

import hashlib
import os
import random
import subprocess
import sys

import pytest

PEAK_MIB = 300

_RUN = """
import runpy, sys
from pathlib import Path
sys.argv = ["holdfast", *sys.argv[1:]]
try:
    runpy.run_module("holdfast", run_name="__main__")
finally:
    # Not ru_maxrss: that begins with what the process held that started this one.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), file=sys.stderr)
"""


def _peak_mib(*arguments):
    done = subprocess.run([sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1]) // 1024


def _hash(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.timeout(120)
def test_a_file_of_two_gibibytes_sparse_and_dense(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    rng = random.Random(2)
    with (source / "image").open("wb") as file:
        file.truncate(2 << 30)
        for number in range(25):
            file.seek(number * (80 << 20))
            file.write(rng.randbytes(8 << 20))
    assert (source / "image").stat().st_blocks * 512 < 220 << 20
    store = ["--store", f"file://{tmp_path}/store"]

    peaks = [
        _peak_mib("backup", str(source), "--name", "trial", *store),
        _peak_mib("backup", str(source), "--name", "trial", *store),
        _peak_mib("restore", "trial", "--target", str(tmp_path / "target"), *store),
        _peak_mib("restore", "trial", "--target", str(tmp_path / "target"), "--verify", *store),
    ]

    assert 20 < max(peaks) < PEAK_MIB, peaks
    back = tmp_path / "target" / "image"
    assert back.stat().st_size == 2 << 30
    assert back.stat().st_blocks * 512 < 220 << 20
    assert os.stat(source / "image").st_mtime_ns == back.stat().st_mtime_ns
    assert _hash(back) == _hash(source / "image")


def test_many_small_files(tmp_path):
    """80 MB in 4,000 files."""
    source = tmp_path / "source"
    rng = random.Random(3)
    for number in range(4_000):
        folder = source / f"{number % 40}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(rng.randbytes(20_000))
    store = ["--store", f"file://{tmp_path}/store"]

    assert _peak_mib("backup", str(source), "--name", "trial", *store) < PEAK_MIB
    assert _peak_mib("restore", "trial", "--target", str(tmp_path / "target"), *store) < PEAK_MIB
