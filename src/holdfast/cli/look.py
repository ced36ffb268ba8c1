"""Commands that look into snapshots: snapshots, ls, diff, find, dump."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import render
from holdfast.cli.options import (
    JsonOption,
    ReferenceArgument,
    StoreOption,
    open_named,
    open_store,
    path_inside,
    source_name,
)
from holdfast.cli.render import View, printable, size_text, time_text
from holdfast.config import read_settings
from holdfast.errors import DamageError, UsageError, exit_code

if TYPE_CHECKING:
    from holdfast.volumes.snapshots import Listed

# The use cases are imported where they are used, so that `holdfast --help` stays fast.
# ruff: noqa: PLC0415


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (snapshots, ls, diff, find, dump):
        app.command()(command)


def snapshots(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this source's.")] = None,
    *,
    store: StoreOption = None,
    json: JsonOption = False,
) -> int:
    """List the snapshots of a source, or of all; those of each source oldest first."""
    from holdfast.model.names import SourceName
    from holdfast.volumes.snapshots import list_snapshots

    opened, _ = open_store(read_settings(store=store))
    source = SourceName(source_name(name)) if name is not None else None
    damaged = 0

    def document(listed: Listed) -> dict[str, Any]:
        nonlocal damaged
        damaged += listed.config is None
        return listed.told()

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

    snapshot = open_named(store, reference)

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

    inside = path_inside(snapshot.name.name, path) if path is not None else b""
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
    from holdfast.volumes.own import own_identities

    before = open_named(store, old)
    if new is not None:
        after = open_named(store, new).entries()
    elif before.name.is_path:
        left_out = before.config.left_out
        own = own_identities(before.store, Cache.of_user())
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

    opened, cache = open_store(read_settings(store=store))
    source = SourceName(source_name(name)) if name is not None else None
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

    snapshot = open_named(store, reference)
    inside = path_inside(snapshot.name.name, path)
    pieces = dump_path(snapshot, inside)
    first = next(pieces, b"")
    if render.is_terminal() and b"\0" in bytes(first[:512]):
        raise UsageError("this is no text for a terminal", hint="redirect it: … > FILE, or … | tar x")
    render.write_bytes(first)
    for piece in pieces:
        render.write_bytes(piece)
