"""Foreign text made fit to show: nothing that a server, log or file says may steer a terminal."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from typing import Any

from fp4forge.core.limits import SHOWN_CHARACTERS

# C0, DEL and C1; then what changes direction or cannot be seen; then halves of surrogate pairs.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f"
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_SPACE = re.compile(r"[\t\n\r\x0b\x0c]+")
_SECRET_NAME = re.compile(r"(?i)token|secret|passw|credential|_key|apikey|authorization")
_SECRETS = (
    (re.compile(r"(\w+://)[^\s/@]+@"), r"\1...@"),
    (re.compile(r"(?i)\b(bearer|basic) +[\w.~+/=-]{8,}"), r"\1 ..."),
    (re.compile(r"\b(hf_|gh[pousr]_|github_pat_|glpat-|AKIA)[\w-]{10,}"), r"\1..."),
    (
        re.compile(r"(?i)((?:token|secret|password|passwd|api[_-]?key)\w*['\"]?\s*[=:]\s*)\S+"),
        r"\1...",
    ),
)


def shown(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Foreign text as one line: control characters as escapes, an absurd length cut.

    Args:
        text: anything; its ``str`` is shown.
        limit: characters that are kept.
    """
    whole = str(text)
    line = _SPACE.sub(" ", whole[: 4 * limit]).strip()
    return _cut_text(_STEERING.sub(_escape, line[:limit]), whole, len(line) > limit)


def block(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """The same for text of several lines: its line breaks stay, and nothing else moves a cursor."""
    whole = str(text)
    return _cut_text(_STEERING.sub(_escape, whole[:limit]), whole, len(whole) > limit)


def _cut_text(kept: str, whole: str, cut: bool) -> str:
    return f"{kept}… ({len(whole):,} characters)" if cut else kept


def steers(text: str) -> bool:
    """Whether text has a character that ``shown`` would replace."""
    return bool(_STEERING.search(text))


def _escape(match: re.Match[str]) -> str:
    letter = match[0]
    if letter == "\n":
        return letter
    if letter == "\t":
        return "    "
    return letter.encode("unicode_escape", "surrogatepass").decode()


def as_json(value: object, indent: int = 1) -> str:
    """JSON in ASCII without any control character; what is not a number is null (RFC 8259)."""
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent)
    # json escapes every control character but this one; it can only stand in a string.
    return text.replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def without_secrets(text: str) -> str:
    """Text without passwords in addresses, tokens, and the values of variables that hold any."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, f"<{name}>")
    for pattern, shorter in _SECRETS:
        text = pattern.sub(shorter, text)
    return text


def text_sha256(text: str) -> str:
    """SHA-256 of a text as UTF-8, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
