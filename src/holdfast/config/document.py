"""The configuration file: YAML, of which every value is read as text, as if it came from the environment.

So ``8080`` and ``"8080"`` are the same, and nothing turns into a date, a number of another base or a boolean. Line
numbers are kept for messages; contents are not shown in them, for a secret may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import yaml

from holdfast.config.files import read_small
from holdfast.errors import UsageError

Place = tuple[str | int, ...]
"""Where a value stands: the keys, and positions in lists from 0, that lead to it."""

_LONGEST = 1 << 20
_DEEPEST = 3
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says: mappings, lists and texts, and the line (from 1) on which each of them stands."""

    path: str
    values: dict[str, object]
    lines: dict[Place, int]

    def where(self, place: Place) -> str:
        """Say where something stands: the file, and the line if there is one."""
        line = self.lines.get(place)
        return f"{self.path}, line {line}" if line else self.path


def load(path: str, sections: Collection[str]) -> Document:
    """Read a configuration file of at most 1 MiB. The keys named in ``sections`` must hold mappings, or nothing.

    :raises UsageError: the file cannot be read, is no YAML, says something twice, or leaves a value empty.
    """
    node = _compose(path, _read(path))
    document = Document(path, {}, {})
    if node is None:
        return document
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path} holds no settings", hint="it is a mapping: KEY: VALUE, one to a line")
    for key, (line, value) in _pairs(document, node, ()).items():
        document.lines[(key,)] = line
        if key not in sections:
            document.values[key] = _plain(document, value, (key,))
            continue
        if value.tag != _NULL and not isinstance(value, yaml.MappingNode):
            raise UsageError(f"{document.where((key,))}: {key} is a section", hint="its settings stand below it")
        document.values[key] = {} if value.tag == _NULL else _plain(document, value, (key,))
    return document


def _read(path: str) -> str:
    data = read_small(path, _LONGEST, "the configuration file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: not UTF-8") from None  # the cause holds the contents


def _compose(path: str, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # A scanner names single characters; a parser or composer may quote what it found, which may be a secret.
        problem = error.problem if isinstance(error, yaml.scanner.ScannerError) else None
        reason = f"not YAML: {problem}" if problem else "not YAML"
        hint = "a value that begins with a mark, or holds ': ' or ' #', stands in quotes"
        raise UsageError(f"{path}{at}: {reason}", hint=hint) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise UsageError(f"{path}, line {line}, column {column}: not YAML: a control character") from None
    except RecursionError:
        raise UsageError(f"{path}: nested too deeply") from None


def _plain(document: Document, node: yaml.Node, place: Place) -> object:
    """Turn a node into mappings, lists and texts. A node may hold itself, hence the bound."""
    name = ".".join(str(part) for part in place)
    if len(place) > _DEEPEST:
        raise UsageError(f"{document.where(place[:_DEEPEST])}: nested too deeply")
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        pairs = _pairs(document, node, place)
        document.lines.update({(*place, key): line for key, (line, _) in pairs.items()})
        return {key: _plain(document, value, (*place, key)) for key, (_, value) in pairs.items()}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(document, item, (*place, number)) for number, item in enumerate(node.value)]
    if node.tag == _NULL:
        raise UsageError(f"{document.where(place)}: {name} is empty", hint="give it a value, or leave it out")
    return str(node.value)


def _pairs(document: Document, node: yaml.MappingNode, place: Place) -> dict[str, tuple[int, yaml.Node]]:
    found: dict[str, tuple[int, yaml.Node]] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{document.path}, line {line}: a key must be a name")
        name = ".".join(str(part) for part in (*place, key.value))
        if key.value in found:
            raise UsageError(f"{document.path}, line {line}: {name} is set twice, first on line {found[key.value][0]}")
        found[key.value] = (line, value)
    return found
