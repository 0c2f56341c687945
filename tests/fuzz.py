"""What a hostile or broken world sends: valid data, spoilt at some places, and plain noise."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fp4forge.cli import defects
from fp4forge.core.errors import DefectError, ForgeError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES") or 200)  # CI asks for 2,000
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=EXAMPLES <= 200,
    suppress_health_check=list(HealthCheck),
)

_NUMBERS = [0, -1, 1, 2, 2**31, 2**63, 2**64, 10**400, 1e308, float("inf"), 0.5, -0.0]
_TEXTS = [
    "",
    "\x00",
    "\ud800",
    "\x1b[2J",
    "\u202e",
    "a" * 5000,
    "²",
    "../../x",
    "~nobody/x",
    "sha256:",
    "\n",
    "0",
]
_LEAVES: list[Any] = [None, True, False, *_NUMBERS, *_TEXTS]
_NESTED: list[Any] = [[], {}, [[]], [{}], {"": {}}, {"digest": None}, [None], ["a", 1], {"a": "b"}]
VALUES = st.sampled_from(_LEAVES + _NESTED) | st.text(max_size=6) | st.integers()


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three nodes replaced, removed or doubled."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        found = _spoil(draw, found)
    return found


def _spoil(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 0:
        return copy.deepcopy(draw(VALUES))
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    action = draw(st.sampled_from(["deeper", "deeper", "deeper", "replace", "remove", "double"]))
    if action == "remove":
        del value[key]
    elif action == "double" and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = _spoil(draw, value[key]) if action == "deeper" else copy.deepcopy(draw(VALUES))
    return value


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes, places: int = 0) -> bytes:
    """Bytes with some cut, changed or put in; ``places``: only within so many at the start."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, min(len(found), places or len(found)) - 1)))
        action = draw(st.sampled_from(["set", "set", "word", "cut", "insert"]))
        if action == "set":
            found[place : place + 1] = bytes([draw(st.integers(0, 255))])
        elif action == "word":
            word = draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\x01" * 4]))
            found[place : place + len(word)] = word
        elif action == "cut":
            del found[place : place + draw(st.integers(1, 200))]
        else:
            found[place:place] = draw(st.binary(max_size=40))
    return bytes(found)


def as_json(value: Any) -> bytes:
    """JSON that may hold halves of surrogate pairs and infinite numbers, as escapes and words."""
    return json.dumps(value).encode()


def documents(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file: of another shape, of broken bytes, or deeply nested."""
    whole = as_json(value)
    deep = st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"[" * 500 + b"]" * 500, b"\xef\xbb\xbf"])
    spoilt_values = spoilt(value).map(as_json)
    return spoilt_values | spoilt_values | spoilt_bytes(whole) | deep | st.binary(max_size=60)


def survives(reader: Callable[[], object]) -> None:
    """The reader returns, or fails as the command line lets it: with a message, not a defect."""
    try:
        reader()
    except ForgeError as error:
        assert error.message
    except Exception as error:
        if isinstance(defects.expected(error), DefectError):
            raise
