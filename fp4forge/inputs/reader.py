"""Input files as typed values: YAML that a ``msgspec.Struct`` describes, or one clear error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from fp4forge.core import reading
from fp4forge.core.errors import ForgeError
from fp4forge.core.limits import INPUT_BYTES
from fp4forge.inputs import yaml_document
from fp4forge.inputs.yaml_document import MalformedYaml, Place, YamlDocument

T = TypeVar("T")


class BrokenField(ValueError):
    """What ``__post_init__`` raises for a field; the text continues a sentence about it."""

    def __init__(self, field: str, text: str, rule: str) -> None:
        super().__init__(text)
        self.field = field
        self.rule = rule


def one_of(names: Iterable[str], description: str) -> msgspec.Meta:
    """Text that is one of some names.

    A pattern rather than a ``Literal``: msgspec's schema leaves out which literals a key may be.
    """
    listed = list(names)
    return msgspec.Meta(
        pattern=f"^({'|'.join(listed)})$", description=f"{description}: {', '.join(listed)}"
    )


def by_version(names: Iterable[str], where: str, failure: type[ForgeError]) -> tuple[str, ...]:
    """Names of files or folders that are versions, oldest first.

    Raises:
        failure: one of them is not a version.
    """
    from packaging.version import InvalidVersion, Version

    try:
        return tuple(sorted(names, key=Version))
    except InvalidVersion as error:
        raise failure(
            f"{where} has a name that is not a version: {error}",
            rule="releases and patch series are named after versions",
            remedy="rename or remove it",
        ) from None


@dataclass(frozen=True)
class InputFormat(Generic[T]):
    """A kind of input file: its type, its schema's name, and the failure that a broken one is."""

    struct: type[T]
    name: str
    failure: type[ForgeError]
    blocks: bool = False  # whether values may have several lines

    def read(self, path: Path, where: str) -> T:
        """The value of a file; ``where`` names it in messages."""
        return self.parse(reading.text(path, self.failure, INPUT_BYTES, where), where)

    def parse(self, text: str, where: str) -> T:
        """The value of a text.

        Raises:
            failure: of this format. The message names the file, the line and the field.
        """
        try:
            read = yaml_document.compose(text, self.blocks)
        except MalformedYaml as error:
            raise self._failure(where, error.line, f" {error}", error.rule, error.remedy) from None
        try:
            return msgspec.convert(read.value, self.struct)
        except msgspec.ValidationError as error:
            raise self._refused(where, read, error) from None

    def _failure(self, where: str, line: int, text: str, rule: str, remedy: str) -> ForgeError:
        place = f"{where} line {line}" if line else where
        return self.failure(
            place + text, rule=rule, remedy=remedy or f"schemas/{self.name}.json lists every field"
        )

    def _refused(
        self, where: str, read: YamlDocument, error: msgspec.ValidationError
    ) -> ForgeError:
        said, steps = _split_message(str(error))
        place = _failure_place(self.struct, read.value, steps, str(error))
        value = _value_at(read.value, place)
        is_key = steps[-1:] == [_KEY]
        rule, remedy = _description(_type(self.struct, place, is_key)), ""
        if found := re.fullmatch(r"Object contains unknown field `(.*)`", said, re.S):
            place = (*place, found[1])
            text = "is not a field"
            known = getattr(_bare_type(_type(self.struct, place[:-1])), "fields", ())
            rule = "fields here: " + ", ".join(entry.name for entry in known)
        elif found := re.fullmatch(r"Object missing required field `(.*)`", said):
            text = f"has no {found[1]!r}"
            rule = _description(_type(self.struct, (*place, found[1])))
        elif found := re.fullmatch(r"Expected `(\w+)`, got `\w+`", said):
            text = (
                f"is {yaml_document.kind(value)} where {_KINDS.get(found[1], found[1])} is expected"
            )
            if found[1] == "str" and isinstance(value, (bool, int, float)):
                remedy = "put it in quotes"
        elif isinstance(error.__cause__, BrokenField):
            text, rule = said, error.__cause__.rule
            place = (*place, error.__cause__.field)
        elif is_key:
            text = "is a key that is not allowed"
        else:
            text, rule = f"is {yaml_document.shortened(value)}", rule or said
        return self._failure(
            where, read.line(place), f": {_place_label(place)} {text}", rule, remedy
        )


_KINDS = {"str": "text", "object": "a mapping", "array": "a list", "float": "a number"}
_ENTRY, _KEY = "[...]", "`key`"


def _split_message(message: str) -> tuple[str, list[str]]:
    """What msgspec says, and the steps to the place it says it of."""
    said, at, path = message.rpartition(" - at ")
    if not at:
        return message, []
    steps = re.findall(r"(?<=\.)[a-z_0-9]+|\[\d+\]|\[\.\.\.\]", path)
    return said, [*steps, _KEY] if path.startswith(_KEY) else steps


def _failure_place(struct: Any, value: Any, steps: list[str], message: str) -> Place:
    """The place of a failure.

    msgspec does not say which entry of a mapping it means. It is the one that, alone in its
    mapping, fails with the same message.
    """
    place: Place = ()
    for step in steps:
        inner = _value_at(value, place)
        if step in (_ENTRY, _KEY) and isinstance(inner, dict):
            alone = (
                k
                for k in inner
                if _fails(struct, _value_replaced(value, place, {k: inner[k]}), message)
            )
            key = next(alone, None)
            if key is None:
                break
            place = (*place, key)
        elif step.startswith("[") and isinstance(inner, list):
            place = (*place, int(step[1:-1]))
        elif isinstance(inner, dict) and step in inner:
            place = (*place, step)
        else:
            break
    return place


def _fails(struct: Any, value: Any, message: str) -> bool:
    try:
        msgspec.convert(value, struct)
    except msgspec.ValidationError as error:
        return str(error) == message
    return False


def _place_label(place: Place) -> str:
    """A place for people: ``patches[0].files``."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return steps.removeprefix(".")[:200] or "the file"


def _value_at(value: Any, place: Place) -> Any:
    for step in place:
        value = value[step]
    return value


def _value_replaced(value: Any, place: Place, new: Any) -> Any:
    """A copy of a value that has another one at a place."""
    if not place:
        return new
    copy = value.copy()
    copy[place[0]] = _value_replaced(value[place[0]], place[1:], new)
    return copy


def _type(struct: Any, place: Place, is_key: bool = False) -> Any:
    """msgspec's description of the type at a place, or of the key that ends it."""
    from msgspec import inspect

    found: Any = inspect.type_info(struct)
    for step in place[:-1] if is_key else place:
        match _bare_type(found):
            case inspect.StructType(fields=fields):
                found = {entry.name: entry.type for entry in fields}.get(str(step))
            case inspect.DictType(value_type=inner) | inspect.VarTupleType(item_type=inner):
                found = inner
    return getattr(_bare_type(found), "key_type", None) if is_key else found


def _bare_type(described: Any) -> Any:
    return getattr(described, "type", described)  # what inspect.Metadata describes


def _description(described: Any) -> str:
    """What a field's own type says about it, with an example."""
    extra = getattr(described, "extra_json_schema", None) or {}
    example = "".join(f", such as {example}" for example in extra.get("examples", ()))
    return f"{extra.get('description', '')}{example}"
