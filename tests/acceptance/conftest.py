"""The stores that the command line is run against."""

from __future__ import annotations

import pytest

from commandline import Holdfast


@pytest.fixture
def local(tmp_path) -> Holdfast:
    """The command with a store in a directory."""
    return Holdfast(f"file://{tmp_path}/store")


@pytest.fixture
def on_s3(s3_bucket) -> Holdfast:
    """The command with a store in a bucket of SeaweedFS."""
    return Holdfast(s3_bucket.url)


@pytest.fixture
def source(tmp_path):
    """Where a test puts what it backs up."""
    return tmp_path / "source"
