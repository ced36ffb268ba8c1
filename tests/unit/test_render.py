import json
import os
import pty
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli import render
from holdfast.cli.render import View, fold, printable, size_text, time_text
from holdfast.errors import DamageError, NotFoundError
from holdfast.progress import Part, Progress

HOSTILE = "h\x1b[31m\u202e\udcff"
HARMLESS = "h\\x1b[31m\\u202e\\udcff"
STATES = ("waiting", "reading", "uploading", "exists", "done", "failed", HOSTILE)


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


def test_an_error_as_json_goes_with_what_is_known_beside(capsys):
    View(json=True).fail(NotFoundError("nothing", hint="look"), {"hosts": [1, 2]})

    seen = capsys.readouterr()
    assert json.loads(seen.out) == {"hosts": [1, 2], "error": "nothing", "hint": "look", "exit_code": 4}
    assert seen.err.splitlines() == ["error: nothing", "hint: look"]


def test_a_note_is_for_people_who_wait(capsys):
    View().note("waiting")
    assert capsys.readouterr().err == "waiting\n"
    View(quiet=True).note("waiting")
    assert capsys.readouterr().err == ""
    View(progress="json").note("waiting")
    assert json.loads(capsys.readouterr().err) == {"note": "waiting"}


def test_json_is_one_object_on_stdout(capsys):
    view = View(json=True)
    view.result({"a": 1}, ["not this"])
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    view.rows(iter([{"a": 1}, {"a": 2}]), str, "things")
    assert json.loads(capsys.readouterr().out) == {"things": [{"a": 1}, {"a": 2}]}


def test_half_a_character_goes_through_json(capsys):
    view = View(json=True)
    view.result({"a": "\udcff"}, [])
    view.rows(iter([{"a": "\udcff"}]), str, "things")
    view.fail(NotFoundError("\udcff"))

    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines[:2]] == [{"a": "\udcff"}, {"things": [{"a": "\udcff"}]}]
    assert json.loads(lines[2])["error"] == "\udcff"


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
        progress.warn(HOSTILE)

    assert capsys.readouterr().err.splitlines() == ["warning: one", f"warning: {HARMLESS}"]


def _parts(*states):
    return [Part(f"layer {number}", state) for number, state in enumerate(states)]


def test_every_part_has_its_line_while_there_is_room():
    parts = _parts("done", "waiting", "reading")

    assert fold(parts, 3) == (parts, "")
    assert fold([], 0) == ([], "")


def test_what_has_ended_makes_room_first_and_then_what_waits():
    parts = _parts("done", "waiting", "reading", "exists", "uploading", "failed", "waiting")

    chosen, others = fold(parts, 4)
    assert [part.name for part in chosen] == ["layer 1", "layer 2", "layer 4"]
    assert others == "and 4 more: 1 waiting, 1 done, 1 exists, 1 failed"
    chosen, others = fold(parts, 1)
    assert chosen == []
    assert others.startswith("and 7 more: 2 waiting, ")


@given(states=st.lists(st.sampled_from(STATES), max_size=30), room=st.integers(-2, 40))
def test_there_are_never_more_lines_than_room(states, room):
    parts = _parts(*states)

    chosen, others = fold(parts, room)

    assert len(chosen) + bool(others) <= max(room, 1)
    assert [part for part in parts if part in chosen] == chosen
    assert (len(chosen) == len(parts)) == (others == "")
    assert printable(others) == others


def _progress(*parts):
    progress = Progress(bytes_total=3 << 20, bytes_done=1 << 20)
    for name, state, done, total in parts:
        part = progress.part(name, state=state, total=total)
        part.done = done
    return progress


def _first_line(view, progress, monkeypatch, capsys):
    """What is shown at the first moment that something is."""
    for interval in ("_LINE_EVERY_S", "_JSON_EVERY_S"):
        monkeypatch.setattr(render, interval, 0.001)
    said = ""
    with view.watch(progress):
        while "\n" not in said:
            said += capsys.readouterr().err
    return said.splitlines()[0]


def test_a_pipe_is_told_how_many_parts_are_where(monkeypatch, capsys):
    parts = [("a", "done", 1, 1), ("b", "uploading", 1, 2), ("c", "done", 0, 0), ("d", HOSTILE, 0, 0)]

    line = _first_line(View(), _progress(*parts), monkeypatch, capsys)

    assert line.startswith("1.0 MiB of 3.0 MiB, ")
    assert line.endswith(f"/s; 2 done, 1 uploading, 1 {HARMLESS}")


def test_a_pipe_is_told_of_files_where_there_are_no_parts(monkeypatch, capsys):
    assert _first_line(View(), _progress(), monkeypatch, capsys).startswith("0 files, 1.0 MiB of 3.0 MiB, ")


def test_parts_as_json(monkeypatch, capsys):
    parts = [("layer 6cbd", "uploading", 1, 2), (HOSTILE, HOSTILE, 0, 0)]

    line = json.loads(_first_line(View(progress="json"), _progress(*parts), monkeypatch, capsys))

    assert line["bytes_done"] == 1 << 20
    assert line["parts"] == [
        {"name": "layer 6cbd", "state": "uploading", "done": 1, "total": 2},
        {"name": HARMLESS, "state": HARMLESS, "done": 0, "total": 0},
    ]
    assert "parts" not in json.loads(_first_line(View(progress="json"), _progress(), monkeypatch, capsys))


def _at_a_terminal(progress, monkeypatch):
    """What is shown on a terminal of 100 columns and 8 lines, up to the first whole picture."""
    ours, theirs = pty.openpty()
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "8")):
        monkeypatch.setenv(name, value)
    said = ""
    with open(theirs, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        with View().watch(progress):
            while "/3.0 MiB" not in said:  # in the last line
                said += os.read(ours, 1 << 16).decode(errors="replace")
        monkeypatch.undo()
    os.close(ours)
    return said


def test_each_part_has_a_bar_at_a_terminal(monkeypatch):
    progress = _progress(
        ("layer 6cbd", "uploading", 1 << 20, 2 << 20), ("tcp://h1:2375", "waiting", 0, 0), (HOSTILE, "failed", 0, 0)
    )

    said = _at_a_terminal(progress, monkeypatch)

    for text in ("layer 6cbd", "uploading", "1.0 MiB of 2.0 MiB", "tcp://h1:2375", HARMLESS, "1.0/3.0 MiB"):
        assert text in said
    assert "files" not in said
    assert HOSTILE[:6] not in said


def test_more_parts_than_lines_are_counted_at_a_terminal(monkeypatch):
    progress = _progress(*((f"layer {number}", "done" if number < 20 else "reading", 1, 1) for number in range(23)))

    said = _at_a_terminal(progress, monkeypatch)

    assert "and 18 more: 18 done" in said
    assert {f"layer {number}" in said for number in (20, 21, 22)} == {True}
    assert "layer 5" not in said


def test_files_are_counted_at_a_terminal_where_there_are_no_parts(monkeypatch):
    assert "0 files" in _at_a_terminal(_progress(), monkeypatch)
