"""Commands that bring volumes into a store and back: backup, restore."""

from __future__ import annotations

import os
import threading
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
    open_named,
    open_store,
    path_inside,
)
from holdfast.cli.render import View, printable, size_text
from holdfast.config import read_settings
from holdfast.errors import INCOMPLETE, UsageError

if TYPE_CHECKING:
    from holdfast.progress import Progress

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
    json: JsonOption = False,
    quiet: QuietOption = False,
    progress: ProgressOption = ProgressStyle.AUTO,
) -> int:
    """Restore a snapshot, or parts of it. Only what differs is written; deletions come last, if all else succeeded."""
    from holdfast.progress import Progress
    from holdfast.storage.cache import Cache
    from holdfast.volumes.own import own_folders
    from holdfast.volumes.restore import Options
    from holdfast.volumes.restore import restore as restore_snapshot

    if snapshot is not None and at is not None:
        raise UsageError("--snapshot and --at cannot go together")
    if target == "" or "" in (paths or ()):
        raise UsageError("a path is empty", hint="name it, or leave it out; `.` is the current directory")
    opened = open_named(store, name, tag=snapshot, at=at)
    view = View(json, quiet, progress.value)
    job = Progress()
    options = Options(
        target=os.fsencode(target) if target is not None else None,
        paths=tuple(path_inside(opened.name.name, path) for path in paths or ()),
        mode="merge" if mode is RestoreMode.MERGE else "replace",
        verify=verify,
        dry_run=dry_run,
        spare=own_folders(opened.store, Cache.of_user()),
    )
    with view.watch(job):
        done = restore_snapshot(opened, options, job)
    for failed in done.failed[:20]:
        view.warn(f"could not restore {printable(failed.path)}: {failed.reason}")
    document = {
        "name": str(opened.name),
        "tag": opened.tag.name,
        "digest": str(opened.digest),
        "dry_run": dry_run,
        **done.told(),
        "warnings": list(job.warnings),
    }
    would = "would be " if dry_run else ""
    view.result(
        document,
        [
            f"{printable(str(opened.name))}@{opened.tag} {would or 'is '}restored to {printable(done.target)}",
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


def _estimate(path: bytes, job: Progress) -> None:
    from holdfast.archive.scan import estimate

    job.files_total, job.bytes_total = estimate(path)
