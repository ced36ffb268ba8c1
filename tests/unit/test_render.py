import json

import pytest

from holdfast.cli.render import View, printable, size_text, time_text
from holdfast.errors import DamageError, NotFoundError
from holdfast.progress import Progress


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 40, "5.0 TiB"),
        (2**70, "1048576.0 PiB"),
    ],
)
def test_sizes(size, text):
    assert size_text(size) == text


def test_times(monkeypatch):
    assert time_text(0)[:4] in ("1970", "1969")
    assert time_text(1 << 62)[:4] == "2116"
    assert time_text(1 << 80) == str(1 << 80)


def test_control_characters_do_not_reach_the_terminal():
    assert printable("plain ü") == "plain ü"
    assert printable("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"


def test_an_error_names_paths_and_the_way_out(capsys):
    error = DamageError("blob\x1b is altered", hint="look", paths=(b"a\nb", b"c\xff"))
    View().fail(error)

    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == ["error: blob\\x1b is altered", "  a\\nb", "  c\\xff", "hint: look"]


def test_an_error_as_json(capsys):
    View(json=True).fail(DamageError("altered", paths=(b"c\xff",)))

    assert json.loads(capsys.readouterr().out) == {
        "error": "altered",
        "hint": None,
        "exit_code": 5,
        "paths": ["c\\xff"],
    }


def test_json_is_one_object_on_stdout(capsys):
    view = View(json=True)
    view.result({"a": 1}, ["not this"])
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    view.rows(iter([{"a": 1}, {"a": 2}]), str, "things")
    assert json.loads(capsys.readouterr().out) == {"things": [{"a": 1}, {"a": 2}]}


def test_quiet_says_nothing_but_what_is_wrong(capsys):
    view = View(quiet=True)
    view.result({}, ["done"])
    view.warn("careful")
    view.fail(NotFoundError("nothing"))

    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == ["warning: careful", "error: nothing"]


def test_warnings_of_a_job_are_shown_once(capsys):
    progress = Progress()
    with View().watch(progress):
        progress.warn("one")
        progress.warn("two")

    assert capsys.readouterr().err.splitlines() == ["warning: one", "warning: two"]
