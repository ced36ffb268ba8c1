"""Commands that bring volumes into a store and back: backup, restore."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import (
    JsonOption,
    NameArgument,
    ProgressOption,
    ProgressStyle,
    QuietOption,
    StoreOption,
    open_store,
    path_inside,
    source_name,
)
from holdfast.cli.render import View, printable, size_text
from holdfast.config import read_settings
from holdfast.config.duration import parse_duration
from holdfast.errors import INCOMPLETE, Unavailable, UsageError

if TYPE_CHECKING:
    from holdfast.archive.scan import Rules
    from holdfast.progress import Progress
    from holdfast.storage.store import Store
    from holdfast.volumes.backup import Source
    from holdfast.volumes.saved import Found

_ASK_AGAIN_S = 0.5

# The use cases are imported where they are used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415


class RestoreMode(StrEnum):
    """What a restore does with what the snapshot does not have."""

    REPLACE = "replace"
    MERGE = "merge"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (backup, restore):
        app.command()(command)


def backup(  # noqa: PLR0913 - the options of a command
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The directory or file to back up.")],
    *,
    store: StoreOption = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Call the source this, not by its path.", metavar="NAME")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", "-e", metavar="GLOB", help="Leave out what matches, as in a .gitignore. Repeatable."),
    ] = None,
    exclude_caches: Annotated[
        bool, typer.Option("--exclude-caches", help="Leave out the content of directories marked by a CACHEDIR.TAG.")
    ] = False,
    one_file_system: Annotated[
        bool, typer.Option("--one-file-system", "-x", help="Do not go into other file systems.")
    ] = False,
    compression: Annotated[
        str | None,
        typer.Option(
            "--compression", metavar="HOW", help="none, zstd, or zstd:1 to zstd:19. [env: HOLDFAST_COMPRESSION]"
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = ProgressStyle.AUTO,
) -> int:
    """Back a directory or file up. Only what changed since the last time is read and stored."""
    from holdfast.archive.scan import Rules
    from holdfast.model.names import SourceName
    from holdfast.progress import Progress
    from holdfast.volumes.backup import Options, Source, back_up
    from holdfast.volumes.own import own_identities

    settings = read_settings(store=store, compression=compression)
    if not source:
        raise UsageError("SOURCE is empty", hint="name a directory or file; `.` is the current one")
    named = SourceName(os.fsencode(name)) if name is not None else None
    read = Source.of_path(os.fsencode(source), named)
    opened, cache = open_store(settings)
    rules = Rules(tuple(exclude or ()), exclude_caches, one_file_system, own_identities(opened, cache))
    view = View(json, quiet, progress.value)
    job = Progress()
    if settings.layout == "tarball":
        return _backup_tarball(view, opened, read, rules, compress=settings.level is not None, job=job)
    if view.live:
        threading.Thread(target=_estimate, args=(read.path, job), daemon=True).start()
    with view.watch(job):
        done = back_up(opened, cache, read, options=Options(rules, settings.level), progress=job)
    counts = done.config.counts
    for failed in done.config.errors[:20]:
        view.warn(f"could not read {printable(failed.path)}: {failed.reason}")
    for path in done.changed[:20]:
        view.warn(f"{printable(path)} changed while it was read; what was read is kept")
    document = {**done.told(), "store": str(opened), "warnings": list(job.warnings)}
    view.result(
        document,
        [
            f"{printable(str(done.name))}@{done.tag}",
            (
                f"{counts.files} files, {counts.directories} directories, {size_text(counts.bytes)}: "
                f"{size_text(counts.bytes_new)} new, {size_text(counts.bytes_stored)} stored, in {counts.seconds:.1f} s"
            ),
            *([] if done.complete else [f"incomplete: {counts.errors} paths could not be read"]),
        ],
    )
    return 0 if done.complete else INCOMPLETE


def _backup_tarball(view: View, store: Store, source: Source, rules: Rules, *, compress: bool, job: Progress) -> int:
    from holdfast.volumes.tarball import save_tarball

    with view.watch(job):
        saved = save_tarball(store.bucket, source, compress=compress, rules=rules, progress=job)
    for failed in saved.errors[:20]:
        view.warn(f"could not read {printable(failed.path)}: {failed.reason}")
    counts = saved.counts
    view.result(
        {**saved.told(), "store": str(store), "warnings": list(job.warnings)},
        [
            f"{printable(str(saved.name))} is saved as {printable(saved.key)}",
            (
                f"{counts.files} files, {counts.directories} directories, {size_text(counts.bytes)}: "
                f"{size_text(saved.stored_bytes)} stored, in {saved.seconds:.1f} s"
            ),
            *([] if saved.complete else [f"incomplete: {len(saved.errors)} paths could not be read"]),
        ],
    )
    return 0 if saved.complete else INCOMPLETE


def restore(  # noqa: PLR0913 - the options of a command
    name: NameArgument,
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Restore only these, relative to the source's root.")
    ] = None,
    *,
    store: StoreOption = None,
    snapshot: Annotated[
        str | None,
        typer.Option("--snapshot", metavar="TAG", help="This snapshot, not the latest. A unique beginning will do."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at", metavar="TIME", help="The newest snapshot not after this time (ISO 8601; a date means its end)."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="DIR", help="Restore into this directory, not where it came from."),
    ] = None,
    mode: Annotated[
        RestoreMode,
        typer.Option(
            "--mode",
            help="replace: remove what the snapshot does not have (but nothing the backup left out); merge: leave it.",
        ),
    ] = RestoreMode.REPLACE,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the contents of files that are there, not only size and time.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")] = False,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Do nothing where something is already: for the start of a container.")
    ] = False,
    wait_for_store: Annotated[
        str | None,
        typer.Option(
            "--wait-for-store", metavar="TIME", help="Wait this long for a store that does not answer yet, as in 30s."
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = ProgressStyle.AUTO,
) -> int:
    """Restore a snapshot, or parts of it. Only what differs is written; deletions come last, if all else succeeded."""
    from holdfast.model.names import SourceName, split_reference
    from holdfast.progress import Progress
    from holdfast.volumes.first import is_empty, mark, unmark
    from holdfast.volumes.own import own_folders
    from holdfast.volumes.restore import Options
    from holdfast.volumes.saved import find_saved, is_file, restore_found, told
    from holdfast.volumes.snapshots import moment

    if snapshot is not None and at is not None:
        raise UsageError("--snapshot and --at cannot go together")
    if target == "" or "" in (paths or ()):
        raise UsageError("a path is empty", hint="name it, or leave it out; `.` is the current directory")
    patience_s = parse_duration(wait_for_store) if wait_for_store is not None else 0.0
    view = View(json, quiet, progress.value)
    place = _place(name, target) if if_empty else b""
    if if_empty and not is_empty(place):
        return _left_alone(view, name, place)
    settings = read_settings(store=store)
    opened, cache = open_store(settings)
    wanted, tag_in_name = split_reference(name)
    if tag_in_name is not None and (snapshot is not None or at is not None):
        raise UsageError("name the snapshot once: with @TAG, --snapshot, or --at")
    source, tag = SourceName(source_name(wanted)), snapshot or tag_in_name
    until = moment(at) if at is not None else None
    prefers_tarball = settings.layout == "tarball"
    found = patiently(
        lambda: find_saved(opened, cache, source, prefers_tarball=prefers_tarball, tag=tag, at=until), patience_s
    )
    job = Progress()
    options = Options(
        target=os.fsencode(target) if target is not None else None,
        paths=tuple(path_inside(source.name, path) for path in paths or ()),
        mode="merge" if mode is RestoreMode.MERGE else "replace",
        verify=verify,
        dry_run=dry_run,
        spare=own_folders(opened, cache),
    )
    marks = if_empty and not dry_run and not is_file(found)
    if marks:
        mark(place)
    with view.watch(job):
        done = restore_found(found, options, progress=job)
    if marks and done.complete:
        unmark(place)
    for failed in done.failed[:20]:
        view.warn(f"could not restore {printable(failed.path)}: {failed.reason}")
    known = told(found)
    document = {
        **known,
        "dry_run": dry_run,
        "restored": not dry_run,
        **done.told(),
        "warnings": list(job.warnings),
    }
    would = "would be " if dry_run else ""
    which = f"{found.name}@{known['tag']}" if "tag" in known else str(found.name)
    view.result(
        document,
        [
            f"{printable(which)} {would or 'is '}restored to {printable(done.target)}",
            (
                f"{done.written} files ({size_text(done.bytes_written)}) {would}written, {done.kept} {would}kept, "
                f"{len(done.deleted)} paths {would}deleted, in {done.seconds:.1f} s"
            ),
            *([f"would delete {printable(path)}" for path in done.deleted] if dry_run else []),
            *(
                []
                if done.complete
                else [f"incomplete: {len(done.failed)} paths could not be restored; nothing was deleted"]
            ),
        ],
    )
    return 0 if done.complete else INCOMPLETE


def _place(name: str, target: str | None) -> bytes:
    """Say where a restore would go, before anybody knows what there is to restore."""
    if target is not None:
        return os.path.realpath(os.fsencode(target))
    source = source_name(name)
    if not source.startswith(b"/"):
        raise UsageError(f"{name!r} is no path of this machine", hint="say where to restore it with --target DIR")
    return os.path.realpath(source)


def _left_alone(view: View, name: str, place: bytes) -> int:
    shown = printable(os.fsdecode(place))
    view.result(
        {"name": name, "target": os.fsdecode(place), "restored": False, "reason": "the target is not empty"},
        [f"{shown} is not empty: nothing was restored"],
    )
    return 0


def patiently(step: Callable[[], Found], patience_s: float) -> Found:
    """Take a step again and again while the store does not answer, for a while."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return step()
        except Unavailable:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(_ASK_AGAIN_S, max(deadline - time.monotonic(), 0)))


def _estimate(path: bytes, job: Progress) -> None:
    from holdfast.archive.scan import estimate

    job.files_total, job.bytes_total = estimate(path)
