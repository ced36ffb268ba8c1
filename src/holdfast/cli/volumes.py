"""Commands for volumes: backup, restore, snapshots, ls, diff, find, dump."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import render
from holdfast.cli.render import View, printable, size_text, time_text
from holdfast.config import Settings, read_settings
from holdfast.errors import INCOMPLETE, DamageError, UsageError, exit_code

if TYPE_CHECKING:
    from holdfast.progress import Progress
    from holdfast.storage.cache import Cache
    from holdfast.storage.store import Store
    from holdfast.volumes.snapshots import Listed, Snapshot

# The use cases are imported where they are used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415


class ProgressStyle(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    NONE = "none"
    PLAIN = "plain"
    JSON = "json"


class RestoreMode(StrEnum):
    """What a restore does with what the snapshot does not have."""

    REPLACE = "replace"
    MERGE = "merge"


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store: s3://BUCKET/PREFIX, file:///PATH, gs://, az://. [env: HOLDFAST_STORE]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
ProgressOption = Annotated[
    ProgressStyle,
    typer.Option("--progress", help="auto: a bar at a terminal, lines elsewhere; json: NDJSON on stderr."),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What `backup` printed: an absolute path, or the name it was given.")
]
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="NAME[@TAG]", help="A source's name; with @TAG one of its snapshots, else the latest.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (backup, restore, snapshots, ls, diff, find, dump):
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

    settings = read_settings(store=store, compression=compression)
    if not source:
        raise UsageError("SOURCE is empty", hint="name a directory or file; `.` is the current one")
    named = SourceName(os.fsencode(name)) if name is not None else None
    read = Source.of_path(os.fsencode(source), named)
    opened, cache = _open(settings)
    rules = Rules(tuple(exclude or ()), exclude_caches, one_file_system, _left_out(opened, cache))
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
    document = {
        "name": str(done.name),
        "tag": done.tag.name,
        "digest": str(done.digest),
        "store": str(opened),
        "files": counts.files,
        "directories": counts.directories,
        "others": counts.others,
        "bytes": counts.bytes,
        "bytes_read": counts.bytes_read,
        "bytes_new": counts.bytes_new,
        "bytes_stored": counts.bytes_stored,
        "seconds": counts.seconds,
        "complete": done.complete,
        "errors_total": counts.errors,
        "errors": [{"path": failed.path, "reason": failed.reason} for failed in done.config.errors],
        "changed": list(done.changed),
        "warnings": list(job.warnings),
    }
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
    from holdfast.volumes.restore import Options
    from holdfast.volumes.restore import restore as restore_snapshot

    if snapshot is not None and at is not None:
        raise UsageError("--snapshot and --at cannot go together")
    if target == "" or "" in (paths or ()):
        raise UsageError("a path is empty", hint="name it, or leave it out; `.` is the current directory")
    opened = _snapshot(store, name, tag=snapshot, at=at)
    view = View(json, quiet, progress.value)
    job = Progress()
    options = Options(
        target=os.fsencode(target) if target is not None else None,
        paths=tuple(_relative(opened.name.name, path) for path in paths or ()),
        mode="merge" if mode is RestoreMode.MERGE else "replace",
        verify=verify,
        dry_run=dry_run,
        spare=tuple(map(os.fsencode, _own_folders(opened.store, Cache.of_user()))),
    )
    with view.watch(job):
        done = restore_snapshot(opened, options, job)
    for failed in done.failed[:20]:
        view.warn(f"could not restore {printable(failed.path)}: {failed.reason}")
    document = {
        "name": str(opened.name),
        "tag": opened.tag.name,
        "digest": str(opened.digest),
        "target": done.target,
        "dry_run": dry_run,
        "written": done.written,
        "kept": done.kept,
        "directories": done.folders,
        "others": done.others,
        "bytes_written": done.bytes_written,
        "deleted": done.deleted,
        "seconds": done.seconds,
        "complete": done.complete,
        "errors": [{"path": failed.path, "reason": failed.reason} for failed in done.failed],
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


def snapshots(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this source's.")] = None,
    *,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """List the snapshots of a source, or of all; those of each source oldest first."""
    from holdfast.model.names import SourceName
    from holdfast.volumes.snapshots import list_snapshots

    opened, _ = _open(read_settings(store=store))
    source = SourceName(_name(name)) if name is not None else None
    damaged = 0

    def document(listed: Listed) -> dict[str, Any]:
        nonlocal damaged
        named = {"name": str(listed.name), "tag": listed.tag.name, "digest": listed.digest and str(listed.digest)}
        if listed.config is None:
            damaged += 1
            return {**named, "damage": listed.damage}
        counts = listed.config.counts
        return {
            **named,
            "created": listed.config.created,
            "host": listed.config.host,
            "files": counts.files,
            "bytes": counts.bytes,
            "bytes_stored": counts.bytes_stored,
            "complete": not counts.errors,
        }

    def line(d: dict[str, Any]) -> str:
        if "damage" in d:
            return f"{d['tag']}  {printable(d['name'])}  damaged: {printable(d['damage'])}"
        text = (
            f"{d['tag']}  {d['files']:>9} files  {size_text(d['bytes']):>10}  {size_text(d['bytes_stored']):>10} stored"
        )
        return f"{text}  {printable(d['host'])}  {printable(d['name'])}" + ("" if d["complete"] else "  (incomplete)")

    View(json).rows(map(document, list_snapshots(opened, source)), line, "snapshots")
    return exit_code(DamageError("")) if damaged else 0


def ls(
    reference: ReferenceArgument,
    path: Annotated[str | None, typer.Argument(metavar="[PATH]", help="A path in the source.")] = None,
    *,
    store: StoreOption = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-R", help="List everything below, too.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show mode, owner, size and time.")] = False,
    json: JsonOption = False,
) -> None:
    """List what a snapshot holds."""
    from holdfast.model.snapshot import Entry, shown
    from holdfast.volumes.look import listing

    snapshot = _snapshot(store, reference)

    def document(entry: Entry) -> dict[str, Any]:
        target = entry.target
        return {
            "path": shown(entry.path),
            "kind": entry.kind,
            "mode": f"{entry.mode:04o}",
            "uid": entry.uid,
            "gid": entry.gid,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "target": shown(target) if isinstance(target, bytes) else target,
        }

    def line(d: dict[str, Any]) -> str:
        name = printable(d["path"]) + ("/" if d["kind"] == "d" else "")
        if d["kind"] in "lh":
            name += f" -> {printable(d['target'])}"
        if not long:
            return name
        kind = {"f": stat.S_IFREG, "h": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}.get(d["kind"])
        kind = kind or {"c": stat.S_IFCHR, "b": stat.S_IFBLK}.get(d["kind"], stat.S_IFIFO)
        mode = stat.filemode(kind | int(d["mode"], 8))
        return f"{mode} {d['uid']:>6} {d['gid']:>6} {d['size']:>14} {time_text(d['mtime_ns'])} {name}"

    inside = _relative(snapshot.name.name, path) if path is not None else b""
    View(json).rows(map(document, listing(snapshot, inside, deep=recursive)), line, "entries")


def diff(
    old: Annotated[str, typer.Argument(metavar="NAME[@TAG]", help="A snapshot.")],
    new: Annotated[
        str | None,
        typer.Argument(metavar="[NAME@TAG]", help="Another; left out, the source as it is on this machine now."),
    ] = None,
    *,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show what differs between two snapshots, or between a snapshot and its source as it is now."""
    from holdfast.archive.scan import Rules
    from holdfast.model.snapshot import shown
    from holdfast.storage.cache import Cache
    from holdfast.volumes.look import differences, live_entries

    before = _snapshot(store, old)
    if new is not None:
        after = _snapshot(store, new).entries()
    elif before.name.is_path:
        left_out = before.config.left_out
        own = _left_out(before.store, Cache.of_user())
        rules = Rules(tuple(left_out.exclude), left_out.caches, left_out.one_file_system, own)
        after = live_entries(os.path.realpath(before.name.name), rules)
    else:
        raise UsageError(f"{before.name} is no path of this machine", hint="name two snapshots: NAME@TAG NAME@TAG")
    signs = {"added": "+", "removed": "-", "modified": "M", "metadata": "U"}
    documents: Iterator[dict[str, Any]] = (
        {"change": d.change, "path": shown(d.path) or ".", "kind": d.kind, "size": d.size}
        for d in differences(before.entries(), after, live=new is None)
    )
    View(json).rows(documents, lambda d: f"{signs[d['change']]} {printable(d['path'])}", "differences")


def find(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="A shell pattern; with a slash it matches whole paths, else names.")
    ],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Search only this source.")] = None,
    *,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Find paths in every snapshot of a source, or of all: each version, and the snapshots that hold it."""
    from holdfast.model.names import SourceName
    from holdfast.model.snapshot import shown
    from holdfast.volumes.look import find as find_versions

    opened, cache = _open(read_settings(store=store))
    source = SourceName(_name(name)) if name is not None else None
    documents: Iterator[dict[str, Any]] = (
        {
            "name": str(version.name),
            "path": shown(version.path),
            "kind": version.kind,
            "size": version.size,
            "mtime_ns": version.mtime_ns,
            "tags": version.tags,
        }
        for version in find_versions(opened, cache, pattern, source)
    )

    def line(d: dict[str, Any]) -> str:
        held = (
            d["tags"][0] if len(d["tags"]) == 1 else f"{d['tags'][-1]} to {d['tags'][0]} ({len(d['tags'])} snapshots)"
        )
        what = f"{printable(d['name'])}: {printable(d['path'])}"
        return f"{what}  {size_text(d['size'])}  {time_text(d['mtime_ns'])}  in {held}"

    View(json).rows(documents, line, "found")


def dump(
    reference: ReferenceArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A path in the source; `/` is all of it.")],
    *,
    store: StoreOption = None,
) -> None:
    """Write a file to stdout, or a directory as a tar archive."""
    from holdfast.volumes.look import dump as dump_path

    snapshot = _snapshot(store, reference)
    inside = _relative(snapshot.name.name, path)
    pieces = dump_path(snapshot, inside)
    first = next(pieces, b"")
    if render.is_terminal() and b"\0" in bytes(first[:512]):
        raise UsageError("this is no text for a terminal", hint="redirect it: … > FILE, or … | tar x")
    render.write_bytes(first)
    for piece in pieces:
        render.write_bytes(piece)


def _open(settings: Settings) -> tuple[Store, Cache]:
    from holdfast.storage.backends import open_bucket
    from holdfast.storage.cache import Cache
    from holdfast.storage.store import Store

    if settings.store.option("layout", "registry") != "registry":
        raise UsageError(
            f"layout {settings.store.option('layout')!r} holds no snapshots", hint="leave layout= out of the URL"
        )
    if settings.store.scheme == "memory":
        raise UsageError("a memory:// store ends with the command", hint="use file:// and a directory")
    return Store(open_bucket(settings.store)), Cache.of_user()


def _snapshot(store: str | None, reference: str, *, tag: str | None = None, at: str | None = None) -> Snapshot:
    from holdfast.model.names import SourceName, split_reference
    from holdfast.volumes.snapshots import open_snapshot

    opened, cache = _open(read_settings(store=store))
    name, tag_in_name = split_reference(reference)
    if tag_in_name is not None and (tag is not None or at is not None):
        raise UsageError("name the snapshot once: with @TAG, --snapshot, or --at")
    return open_snapshot(
        opened, cache, SourceName(_name(name)), tag=tag or tag_in_name, at=_time(at) if at is not None else None
    )


def _name(text: str) -> bytes:
    """Normalize a path as it was when it was backed up; leave a name as it is."""
    from holdfast.model.names import SourceName

    return (
        SourceName.of_path(os.fsencode(text)).name
        if text.startswith(("/", "./", "../")) or text in (".", "..")
        else os.fsencode(text)
    )


def _relative(name: bytes, text: str) -> bytes:
    """Take a path in a source as the user writes it: relative to its root, or absolute and below it."""
    path = os.path.normpath(os.fsencode(text))
    if path in (b".", b"/", b"//"):
        return b""
    if name.startswith(b"/"):
        base = name.rstrip(b"/")
        if path == base:
            return b""
        if path.startswith(base + b"/"):
            return path[len(base) + 1 :]
    path = path.lstrip(b"/")
    if path == b".." or path.startswith(b"../"):
        raise UsageError(f"{text!r} leads out of the source")
    return path


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"not a time: {text!r}", hint="write it as 2026-11-20 or 2026-11-20T06:05:01Z") from error
    if len(text) in (len("20261120"), len("2026-11-20")):
        moment = datetime.combine(moment.date(), time.max)
    return moment.astimezone()


def _own_folders(store: Store, cache: Cache) -> list[str]:
    """Give the directories that no backup goes into and no restore removes: the cache's, and the store's own."""
    url = store.bucket.url
    return [str(cache.folder), *([url.directory] if url.scheme == "file" else [])]


def _left_out(store: Store, cache: Cache) -> frozenset[tuple[int, int]]:
    """Give (device, inode) of our own directories, made first: only what is there can be told apart in the source."""
    url = store.bucket.url
    if url.scheme == "file" and url.flag("create", default=True):
        store.bucket.make()
    with suppress(OSError):
        cache.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = set()
    for folder in _own_folders(store, cache):
        if os.path.isdir(folder):
            status = os.stat(folder)
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _estimate(path: bytes, job: Progress) -> None:
    from holdfast.archive.scan import estimate

    job.files_total, job.bytes_total = estimate(path)
