import pytest

from holdfast.config import DEFAULT_LEVEL, parse_compression, read_settings
from holdfast.errors import UsageError


def _store(**given):
    environment = given.pop("environment", {})
    return str(read_settings(environment=environment, **given).store)


def test_an_option_beats_the_environment_which_beats_the_old_name():
    environment = {"HOLDFAST_STORE": "s3://new", "S3_BUCKET_NAME": "old"}

    assert _store(store="file:///here", environment=environment) == "file:///here"
    assert _store(environment=environment) == "s3://new"
    assert _store(environment={"S3_BUCKET_NAME": "old"}) == "s3://old"


def test_an_empty_variable_counts_as_none():
    assert _store(environment={"HOLDFAST_STORE": "", "S3_BUCKET_NAME": "old"}) == "s3://old"


def test_without_anything_said_root_keeps_its_store_in_var_lib(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)

    assert _store() == "file:///var/lib/holdfast/store"


def test_without_anything_said_others_keep_it_in_their_home(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/kelp")

    assert _store() == "file:///home/kelp/.local/share/holdfast/store"
    assert _store(environment={"XDG_DATA_HOME": "/data"}) == "file:///data/holdfast/store"


def test_compression_by_option_then_environment_then_default():
    environment = {"HOLDFAST_COMPRESSION": "zstd:9"}

    assert read_settings(compression="none", environment=environment).level is None
    assert read_settings(environment=environment).level == 9
    assert read_settings(environment={}).level == DEFAULT_LEVEL


@pytest.mark.parametrize(("text", "level"), [("none", None), ("zstd", 2), ("zstd:1", 1), ("zstd:19", 19)])
def test_compression_reads(text, level):
    assert parse_compression(text) == level


@pytest.mark.parametrize("text", ["", "gzip", "zstd:0", "zstd:20", "zstd:x", "zstd:-3", "zstd:٣", "none:1", "zstd:3:3"])
def test_compression_refuses(text):
    with pytest.raises(UsageError) as caught:
        parse_compression(text)
    assert "zstd:LEVEL" in (caught.value.hint or "")


def test_settings_do_not_change():
    settings = read_settings(store="memory://x", environment={})

    with pytest.raises(AttributeError):
        settings.level = 1
