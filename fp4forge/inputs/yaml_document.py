"""The part of YAML that input files use: text, numbers, true and false, in lists and mappings.

PyYAML's C parser yields events, which are put together here. Its own composer recurses, keeps the
last of two equal keys, and shares what an alias names without a limit on what that expands to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from fp4forge.core.limits import INPUT_DEPTH, INPUT_VALUES

# Keys and list indices that lead to a value.
Place = tuple[str | int, ...]

_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]{0,15})?")


class MalformedYaml(Exception):
    """A file that cannot be read; the text continues a sentence that begins with the file."""

    def __init__(self, text: str, line: int = 0, *, rule: str = "", remedy: str = "") -> None:
        super().__init__(text)
        self.line = line
        self.rule = rule
        self.remedy = remedy


@dataclass
class YamlDocument:
    """The value of a file, and the line on which each of its parts starts."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest place around it; 0 in an empty file."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 0)


def compose(text: str, blocks: bool = False) -> YamlDocument:
    """The document in a text.

    Args:
        text: YAML.
        blocks: whether a value may have several lines; its type says which.

    Raises:
        MalformedYaml: the text is not YAML, or uses more of YAML than input files may.
    """
    composer = _Composer(blocks)
    try:
        loader = yaml.CSafeLoader(text)
        while loader.check_event():
            composer.take(loader.get_event(), loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise MalformedYaml(f"is not valid YAML: {error.problem}", line) from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise MalformedYaml(f"is not valid YAML: {getattr(error, 'reason', error)}") from None
    return composer.document


@dataclass
class _Open:
    """A list or mapping whose end has not been read yet."""

    value: Any
    place: Place
    anchor: str | None
    before: int  # values that the document had when this one began
    key: str | None = None  # in a mapping, of the value to come


class _Composer:
    def __init__(self, blocks: bool) -> None:
        self.blocks = blocks
        self.document = YamlDocument()
        self.open: list[_Open] = []
        self.count = 0
        self.anchors: dict[str, tuple[Any, int]] = {}  # a value, and how many values it holds

    def take(self, event: Any, loader: Any) -> None:
        line = event.start_mark.line + 1
        if getattr(event, "tag", None):
            raise MalformedYaml(f"has the tag {event.tag!r}", line, rule="values have no tags")
        match event:
            case yaml.DocumentStartEvent() if self.document.lines:
                raise MalformedYaml(
                    "starts a second document", line, rule="a file has one document"
                )
            case yaml.ScalarEvent():
                value = _yaml_scalar(event, loader, line, self.blocks)
                self._add(value, 1, line)
                if event.anchor:
                    self.anchors[event.anchor] = value, 1
            case yaml.AliasEvent():
                if event.anchor not in self.anchors:
                    raise MalformedYaml(
                        f"has *{event.anchor}, but no &{event.anchor} before it", line
                    )
                self._add(*self.anchors[event.anchor], line)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                if len(self.open) == INPUT_DEPTH:
                    raise MalformedYaml(
                        "nests too deeply", line, rule=f"at most {INPUT_DEPTH} levels"
                    )
                begun: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                before = self.count
                self.open.append(_Open(begun, self._add(begun, 1, line), event.anchor, before))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                ended = self.open.pop()
                if ended.anchor:
                    self.anchors[ended.anchor] = ended.value, self.count - ended.before

    def _add(self, value: Any, size: int, line: int) -> Place:
        """Puts a value into the list or mapping that is open; returns where it went."""
        self.count += size
        if self.count > INPUT_VALUES:
            raise MalformedYaml(
                "holds too many values",
                line,
                rule=f"at most {INPUT_VALUES}, with all that aliases stand for",
            )
        place: Place = ()
        if not self.open:
            self.document.value = value
        else:
            parent = self.open[-1]
            if isinstance(parent.value, list):
                place = (*parent.place, len(parent.value))
                parent.value.append(value)
            elif parent.key is None:
                place = (*parent.place, self._key(parent, value, line))
            else:
                place = (*parent.place, parent.key)
                parent.value[parent.key], parent.key = value, None
        self.document.lines.setdefault(place, line)
        return place

    def _key(self, parent: _Open, key: Any, line: int) -> str:
        if not isinstance(key, str):
            raise MalformedYaml(
                f"has a key that is {kind(key)}",
                line,
                rule="keys are text",
                remedy="put it in quotes",
            )
        if "\n" in key:
            raise MalformedYaml(
                f"has a key of several lines: {shortened(key)}", line, rule="keys are one line"
            )
        if key in parent.value:
            raise MalformedYaml(f"has {key!r} twice", line, rule="a key stands once in a mapping")
        parent.key = key
        return key


def _yaml_scalar(event: Any, loader: Any, line: int, blocks: bool) -> Any:
    text: str = event.value
    if not (text.replace("\n", "") if blocks else text).isprintable():
        remedy = "start a block of text with >-, which joins its lines" if "\n" in text else ""
        raise MalformedYaml(
            f"has a control character: {shortened(text)}",
            line,
            rule="values are one line of printable text",
            remedy=remedy,
        )
    resolved = loader.resolve(yaml.ScalarNode, text, event.implicit).rpartition(":")[2]
    if resolved == "str":
        return text
    if resolved == "null":
        return None
    if resolved == "bool":
        return yaml.CSafeLoader.bool_values[text.lower()]
    if resolved in ("int", "float") and _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    raise MalformedYaml(
        f"has {shortened(text)}, which YAML takes for {_OTHER.get(resolved, 'a number')}",
        line,
        rule="values are text, decimal numbers of at most 15 digits, true or false",
        remedy="put it in quotes if it is text",
    )


_OTHER = {"timestamp": "a date", "merge": "a merge key", "value": "a default value"}


def kind(value: Any) -> str:
    """What a value is, for people."""
    kinds = {str: "text", bool: "true or false", type(None): "empty", list: "a list"}
    return kinds.get(type(value), "a mapping" if isinstance(value, dict) else "a number")


def shortened(value: Any) -> str:
    """A value as a message shows it: what is long loses its end."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
