import io
import json
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import logs

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
ANY_TEXT = st.text(st.characters())  # surrogates too
HOSTILE = "a\nb\rc\x1b[31m\x7f\x85\u2028\u202e\udcff"


@pytest.fixture
def written(monkeypatch):
    """Set logs up on a buffer, and put the process's logging back afterwards."""
    loggers = [logging.getLogger(name) for name in (None, "holdfast", "uvicorn")]
    before = [(logger, logger.handlers[:], logger.level) for logger in loggers]
    buffer = io.StringIO()

    def set_up(style, level="info"):
        monkeypatch.setattr("sys.stderr", buffer)
        logs.set_up(style, level)
        return buffer

    yield set_up
    for logger, handlers, level in before:
        logger.handlers = handlers
        logger.setLevel(level)


def _record(event, **fields):
    record = logging.LogRecord("holdfast", logging.INFO, "", 0, event, None, None)
    record.fields = fields
    return record


def _line(style, event, **fields):
    return logs.formatter(style).format(_record(event, **fields))


def test_a_line_of_text_has_time_level_event_and_fields(written):
    out = written("text")

    logs.info("persist saved", path="/var/www", seconds=0.5, full=True, tag=None)

    assert re.fullmatch(TIME + r" info  persist saved  path=/var/www seconds=0\.5 full=true tag=null\n", out.getvalue())


def test_a_line_of_json_has_the_same(written):
    out = written("json")

    logs.warn("persist refused", path="/a b", status=403)

    document = json.loads(out.getvalue())
    assert re.fullmatch(TIME, document.pop("time"))
    assert document == {"level": "warn", "event": "persist refused", "path": "/a b", "status": 403}


def test_time_is_utc_to_the_millisecond():
    record = _record("x")
    record.created = 1795168800.1239

    assert logs.formatter("text").format(record).startswith("2026-11-20T10:00:00.123Z ")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["d", "i", "w", "e"]),
        ("info", ["i", "w", "e"]),
        ("warn", ["w", "e"]),
        ("error", ["e"]),
    ],
)
def test_the_level_is_the_least_that_is_written(written, level, shown):
    out = written("json", level)

    logs.debug("d")
    logs.info("i")
    logs.warn("w")
    logs.error("e")

    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == shown


def test_of_other_libraries_no_debugging_is_shown(written):
    out = written("text", "debug")

    logging.getLogger("botocore.auth").debug("Authorization: hidden")
    logging.getLogger("botocore").warning("seen")

    assert "hidden" not in out.getvalue()
    assert "warn  seen  logger=botocore" in out.getvalue()


def test_uvicorn_writes_lines_of_the_same_kind(written):
    out = written("json")

    logging.getLogger("uvicorn.error").info("Started server process [%d]", 7)

    document = json.loads(out.getvalue())
    assert document["event"] == "Started server process [7]"
    assert (document["level"], document["logger"]) == ("info", "uvicorn.error")


def test_setting_up_again_replaces_what_was(written):
    written("text")
    out = written("json")

    logs.info("once")

    assert len(out.getvalue().splitlines()) == 1
    assert json.loads(out.getvalue())["event"] == "once"


@pytest.mark.parametrize("style", logs.FORMATS)
def test_a_traceback_stays_on_its_line(written, style):
    out = written(style)

    try:
        int("broken\nbone")
    except ValueError as error:
        logs.error("failed", exception=error)

    assert out.getvalue().count("\n") == 1
    assert "ValueError: invalid literal" in out.getvalue()


def test_a_field_cannot_pass_for_the_event_or_the_time():
    document = json.loads(_line("json", "saved", time="never", level="none"))

    assert (document["event"], document["level"]) == ("saved", "info")
    assert document["time"] != "never"


def test_hostile_text_shows_as_what_it_is():
    line = _line("text", "x", path=HOSTILE)

    assert line.endswith(r'path="a\nb\rc\u001b[31m\u007f\u0085\u2028\u202e\udcff"')


def test_a_value_cannot_pass_for_another_field():
    assert _line("text", "x", path="/a status=200").endswith('  path="/a status=200"')
    assert _line("text", "x", path='/a" b="c').endswith(r'  path="/a\" b=\"c"')
    assert _line("text", "x", path="").endswith('  path=""')


@pytest.mark.parametrize("style", logs.FORMATS)
@given(event=ANY_TEXT, value=ANY_TEXT)
def test_no_text_breaks_out_of_its_line(style, event, value):
    line = _line(style, event, path=value)

    assert line.isprintable()
    assert len(line.splitlines()) == 1


@given(value=ANY_TEXT)
def test_a_value_can_be_read_back_from_both_formats(value):
    shown = _line("text", "x", path=value).partition("path=")[2]

    assert (json.loads(shown) if shown.startswith('"') else shown) == value
    assert json.loads(_line("json", "x", path=value))["path"] == value
