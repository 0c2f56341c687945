"""The one way in for foreign data: bounded, of the right kind, and of the right shape.

Every reader names the class of error that it fails with. The message has the place, what is wrong
there, and the rule.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from fp4forge.core.errors import ForgeError
from fp4forge.core.limits import CONFIG_BYTES, YAML_DEPTH, YAML_NODES
from fp4forge.core.text import shown

T = TypeVar("T")
Kind = type[ForgeError]


def content(path: Path, kind: Kind, limit: int = CONFIG_BYTES, where: str = "") -> bytes:
    """The bytes of a plain file; ``where`` names it in messages, otherwise its path does.

    Raises:
        ForgeError: of the given class: there is none, it is a pipe, device or folder, links lead in
            a circle, it cannot be read, or it has more bytes than the limit.
    """
    where = where or shown(path, 300)
    with opened(path, kind, where) as file:
        try:
            found = file.read(limit + 1)
        except OSError as error:
            raise kind(f"{where} cannot be read: {error.strerror}") from None
    if len(found) > limit:
        raise kind(f"{where} is too large", rule=f"at most {limit:,} bytes are read")
    return found


def is_file(path: Path) -> bool:
    """Whether a plain file is there; pathlib's own raises for a name that is too long."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    return os.path.isdir(path)  # noqa: PTH112


def opened(path: Path, kind: Kind, where: str = "") -> io.BufferedReader:
    """A plain file, open for reading; ``where`` names it in messages, otherwise its path does.

    Raises:
        ForgeError: of the given class: there is none, it is a pipe, device or folder, links lead in
            a circle, or it cannot be opened.
    """
    where = where or shown(path, 300)
    try:
        # Without blocking: a pipe without a writer would be waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise kind(f"{where} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL or half a surrogate pair in the name
        raise kind(f"{where} cannot be the name of a file: {error}") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise kind(f"{where} is {_file_kind(mode)}", rule="a plain file")
    try:
        os.pread(handle, 1, 0)  # some of /proc's files are pipes in all but name
    except OSError as error:
        os.close(handle)
        raise kind(f"{where} cannot be read: {error.strerror}") from None
    return os.fdopen(handle, "rb")


def text(path: Path, kind: Kind, limit: int = CONFIG_BYTES, where: str = "") -> str:
    """The text of a plain file, as UTF-8; ``where`` names it in messages, otherwise its path does.

    Raises:
        ForgeError: as ``content``, or it is not UTF-8.
    """
    where = where or shown(path, 300)
    return utf8(content(path, kind, limit, where), where, kind)


def utf8(data: bytes, where: str, kind: Kind) -> str:
    """Text from UTF-8, with or without a byte-order mark.

    Raises:
        ForgeError: of the given class: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise kind(f"{where} line {line} is not UTF-8", remedy="save the file as UTF-8") from None


def json_file(path: Path, shape: type[T], kind: Kind, limit: int = CONFIG_BYTES) -> T:
    """A plain file's JSON as a typed value.

    Raises:
        ForgeError: as ``content`` and ``json``.
    """
    return json(content(path, kind, limit), shape, shown(path, 300), kind)


class HasName(Protocol):
    """What has the name of the folder that it is kept in."""

    @property
    def name(self) -> str:
        """That name."""


N = TypeVar("N", bound=HasName)


def record(path: Path, shape: type[N], kind: Kind) -> N:
    """A record of something that has a folder of its own, by its name.

    Raises:
        ForgeError: as ``json_file``, or it has another name: its folder would be another's.
    """
    found = json_file(path, shape, kind)
    if found.name != path.parent.name:
        raise kind(
            f"{shown(path, 300)}: name: {shown(found.name, 100)!r}", rule="the name of its folder"
        )
    return found


def json(data: bytes | msgspec.Raw | str, shape: type[T], where: str, kind: Kind) -> T:
    """JSON (RFC 8259) as a typed value.

    Args:
        data: the text.
        shape: a ``msgspec.Struct`` or another type that msgspec knows.
        where: the file or server, for the message.
        kind: class of the error.

    Raises:
        ForgeError: of the given class: it is not JSON, nests too deeply, or has another shape; the
            message names the field.
    """
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise kind(f"{where}: {_field(error)}", rule="the documented form of that file") from None
    except UnicodeError:
        raise kind(f"{where} is not UTF-8", rule="JSON is UTF-8 (RFC 8259)") from None
    except msgspec.DecodeError as error:
        raise kind(f"{where} is not JSON: {shown(error, 200)}", rule="RFC 8259") from None
    except RecursionError:
        raise kind(f"{where} nests too deeply", rule="no known file needs 1,000 levels") from None


def shaped(value: Any, shape: type[T], where: str, kind: Kind) -> T:
    """A value that was parsed before (from YAML, by another library) as a typed one.

    Raises:
        ForgeError: of the given class: it has another shape; the message names the field.
    """
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise kind(f"{where}: {_field(error)}", rule="the documented form of that file") from None
    except UnicodeError:
        raise kind(f"{where} holds text that is not Unicode") from None
    except RecursionError:
        raise kind(f"{where} nests too deeply") from None


def yaml(data: str, where: str, kind: Kind) -> Any:
    """YAML as plain values; aliases may not make it larger than YAML_NODES values.

    Raises:
        ForgeError: of the given class: it is not YAML, nests too deeply or grows too large.
    """
    import yaml as parser

    try:
        # First: deep nesting overflows the C loader's stack, and merged aliases its memory.
        _check_nesting(parser.parse(data, parser.CSafeLoader), where, kind)
        return parser.load(data, parser.CSafeLoader)
    except parser.YAMLError as error:
        raise kind(f"{where} is not YAML: {shown(error, 300)}") from None
    except (ValueError, OverflowError, TypeError, AttributeError, LookupError) as error:
        raise kind(f"{where}: a YAML value has no meaning: {shown(error, 200)}") from None


def _check_nesting(events: Any, where: str, kind: Kind) -> None:
    """Refuses nesting, and values that hold themselves or many copies of others."""
    import yaml as parser

    sizes: dict[str, int] = {}  # values of each anchor that is complete
    open_: list[tuple[str | None, int]] = []  # anchor and size of each collection around this place
    for event in events:
        size = 0
        if isinstance(event, parser.AliasEvent):
            if event.anchor not in sizes:
                raise kind(f"{where}: the alias *{shown(event.anchor, 40)} contains itself")
            size = sizes[event.anchor]
        elif isinstance(event, parser.ScalarEvent):
            size = 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, parser.CollectionStartEvent):
            if event.anchor:
                sizes.pop(event.anchor, None)
            open_.append((event.anchor, 1))
        elif isinstance(event, parser.CollectionEndEvent):
            anchor, size = open_.pop()
            if anchor:
                sizes[anchor] = size
        if open_ and size:
            open_[-1] = (open_[-1][0], open_[-1][1] + size)
        if len(open_) > YAML_DEPTH:
            raise kind(f"{where} nests too deeply", rule=f"at most {YAML_DEPTH} levels")
        if max((total for _, total in open_[-1:]), default=0) > YAML_NODES:
            raise kind(f"{where} is too large", rule=f"at most {YAML_NODES:,} values, aliases too")


def _field(error: msgspec.ValidationError) -> str:
    what, _, place = str(error).partition(" - at `")
    name = place.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".")
    text_ = what.replace("`", "").replace("Expected ", "expected ")
    return f"{shown(name, 200)}: {text_}" if name else text_


def _file_kind(mode: int) -> str:
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")
