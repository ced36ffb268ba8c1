"""What a backup leaves out."""

import subprocess
import sys

import pytest

from commandline import Holdfast
from trees import IS_ROOT, write


def _listed(holdfast, source):
    return set(holdfast.run("ls", "-R", source).lines)


@pytest.fixture
def project(source):
    for path in (
        "app.py", "app.log", "keep.log", "build/out.o", "src/build/out.o", "src/a.tmp", "src/deep/b.tmp",
        "docs/private/x", "docs/private/y.md", "docs/open", "cache/data", "weird/#hash", "weird/!bang", "sp ace/f",
    ):  # fmt: skip
        write(source / path, "x")
    return source


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["*.log"], {"app.log", "keep.log"}),
        (["*.log", "!keep.log"], {"app.log"}),
        (["!keep.log", "*.log"], {"app.log", "keep.log"}),  # the last that matches decides
        (["/build"], {"build/", "build/out.o"}),  # anchored at the root
        (["build"], {"build/", "build/out.o", "src/build/", "src/build/out.o"}),
        (["build/"], {"build/", "build/out.o", "src/build/", "src/build/out.o"}),
        (["app.py/"], set()),  # a directory only
        (["src/*.tmp"], {"src/a.tmp"}),
        (["src/**/*.tmp"], {"src/a.tmp", "src/deep/b.tmp"}),
        (["**/deep"], {"src/deep/", "src/deep/b.tmp"}),
        (["docs/private/*", "!*.md"], {"docs/private/x"}),
        (["docs/private", "!*.md"], {"docs/private/", "docs/private/x", "docs/private/y.md"}),  # never looked into
        (["\\#hash", "\\!bang"], {"weird/#hash", "weird/!bang"}),
        (["# a comment", ""], set()),
        (["sp ace"], {"sp ace/", "sp ace/f"}),
        (["app.[lp]*"], {"app.py", "app.log"}),
    ],
)
def test_excludes_read_as_in_a_gitignore(patterns, gone, local, project):
    found = (path.relative_to(project).as_posix() + "/" * path.is_dir() for path in project.rglob("*"))
    everything = set(found)

    local.backup(project, *(argument for pattern in patterns for argument in ("--exclude", pattern)))

    assert everything - _listed(local, project) == gone


def test_what_is_excluded_later_is_gone_from_the_next_snapshot_only(local, project):
    first = local.backup(project)
    second = local.backup(project, "-e", "src")

    assert second["bytes_read"] == 0
    assert "src/a.tmp" in local.run("ls", "-R", f"{project}@{first['tag']}").lines
    assert "src/" not in local.run("ls", "-R", f"{project}@{second['tag']}").lines


def test_marked_caches_are_left_out_on_demand(local, source):
    write(source / "cache/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55\n# by a program")
    write(source / "cache/deep/data", "x")
    write(source / "fake/CACHEDIR.TAG", b"Signature: none")
    write(source / "fake/data", "x")

    local.backup(source)
    everything = _listed(local, source)
    local.backup(source, "--exclude-caches")

    assert everything - _listed(local, source) == {"cache/deep/", "cache/deep/data"}
    assert "cache/CACHEDIR.TAG" in everything


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount")
def test_other_file_systems_are_left_out_on_demand(local, source):
    """In a mount namespace of its own, which ends with the command."""
    write(source / "here", "x")
    (source / "mounted").mkdir()
    script = (
        f"mount -t tmpfs none '{source}/mounted' && echo x > '{source}/mounted/there' "
        f"&& '{sys.executable}' -m holdfast backup '{source}' --store '{local.store}' "
    )

    def inside(*options):
        command = ["unshare", "--mount", "sh", "-c", script + " ".join(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "permission denied" in done.stderr.lower() or "not permitted" in done.stderr:
            pytest.skip("mounting is not allowed here")
        assert done.returncode == 0, done.stderr

    inside()
    assert "mounted/there" in _listed(local, source)
    inside("--one-file-system")
    assert _listed(local, source) == {"here", "mounted/"}


@pytest.mark.skipif(not IS_ROOT, reason="needs root, to do without its privileges")
def test_what_cannot_be_read_is_named_and_the_rest_is_saved(local, source, tmp_path):
    write(source / "open", "open")
    write(source / "closed", "closed")
    write(source / "shut/inside", "inside")
    (source / "closed").chmod(0)
    (source / "shut").chmod(0)
    weak = Holdfast(
        local.store, wrapper=("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    )

    done = weak.backup(source, code=3)
    ran = weak.run("backup", source, code=3)

    assert not done["complete"]
    assert sorted((one["path"], one["reason"]) for one in done["errors"]) == [
        ("closed", "Permission denied"),
        ("shut", "Permission denied"),
    ]
    assert "closed" in ran.err
    assert "incomplete: 2 paths" in ran.text
    assert "(incomplete)" in local.run("snapshots", source).text
    local.restore(source, "--target", tmp_path / "back")
    assert {path.name for path in (tmp_path / "back").iterdir()} == {"open", "shut"}
