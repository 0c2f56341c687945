"""Variables in compose files, as the Compose specification's "Interpolation" has them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fp4forge.core import reading
from fp4forge.core.errors import UsageError
from fp4forge.core.limits import YAML_DEPTH

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_PAIR = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]{0,200})\s*=\s*(.*)$")
_PARTS = re.compile(r"(:?[-?+])?(.*)", re.S)
# In place of a value that nobody knows here; no flag, path or number has it.
UNKNOWN = "\ufffd"


def environment(folder: Path) -> dict[str, str]:
    """What compose substitutes from: this environment, then ``.env`` beside the file."""
    return pairs(folder / ".env") | dict(os.environ)


def pairs(path: Path) -> dict[str, str]:
    """The variables of an env file; none if it cannot be read."""
    try:
        text = reading.text(path, UsageError)
    except UsageError:
        return {}
    found = {}
    for line in text.splitlines():
        match = _PAIR.match(line)
        if match and not line.lstrip().startswith("#"):
            found[match[1]] = _unquoted(match[2])
    return found


def _unquoted(value: str) -> str:
    value = value.strip()
    for quote in ("'", '"'):
        if value.startswith(quote) and (end := value.find(quote, 1)) > 0:
            return value[1:end]
    return re.sub(r"\s+#.*", "", value)


def resolve(value: Any, known: Mapping[str, str]) -> Any:
    """A value of a compose file with every text in it interpolated."""
    if isinstance(value, str):
        return text(value, known)
    if isinstance(value, list):
        return [resolve(entry, known) for entry in value]
    if isinstance(value, dict):
        return {key: resolve(entry, known) for key, entry in value.items()}
    return value


def text(value: str, known: Mapping[str, str], depth: int = 0) -> str:
    """A text with its variables replaced; ``UNKNOWN`` for one without value and default."""
    if "$" not in value or depth > YAML_DEPTH:
        return value
    out, at = [], 0
    while (dollar := value.find("$", at)) >= 0:
        out.append(value[at:dollar])
        rest = value[dollar + 1 : dollar + 2]
        name = _NAME.match(value, dollar + 1)
        end = _closing(value, dollar + 2) if rest == "{" else -1
        if rest == "$":
            out.append("$")
            at = dollar + 2
        elif name:
            out.append(known.get(name[0], UNKNOWN))
            at = name.end()
        elif end > 0:
            out.append(_braced(value[dollar + 2 : end], known, depth))
            at = end + 1
        else:
            out.append("$")
            at = dollar + 1
    return "".join(out) + value[at:]


def _closing(value: str, start: int) -> int:
    """The place of the brace that closes; -1 if none does."""
    depth = 1
    for place in range(start, len(value)):
        if value[place] == "}":
            depth -= 1
            if not depth:
                return place
        elif value[place] == "{" and value[place - 1] == "$":
            depth += 1
    return -1


def _braced(inside: str, known: Mapping[str, str], depth: int) -> str:
    name = _NAME.match(inside)
    if not name:
        return UNKNOWN
    parts = _PARTS.fullmatch(inside, name.end())
    sign, rest = (parts[1] or "", parts[2]) if parts else ("", "")
    value = known.get(name[0])
    there = bool(value) if sign.startswith(":") else value is not None
    if sign.endswith("+"):
        return text(rest, known, depth + 1) if there else ""
    if sign.endswith("-") and not there:
        return text(rest, known, depth + 1)
    return UNKNOWN if value is None or (sign.endswith("?") and not there) else value
