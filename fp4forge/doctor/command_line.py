"""A server's command line: its words, flags and model, whoever wrote it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

# One-letter and old names of vLLM's flags (vllm/engine/arg_utils.py).
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-ep": "--enable-expert-parallel",
    "-n": "--nnodes",
    "-r": "--node-rank",
    "-sc": "--speculative-config",
    "-ac": "--attention-config",
}
_SHELLS = ("bash", "sh", "/bin/bash", "/bin/sh", "/usr/bin/bash")
# Images whose entrypoint is "vllm serve" (vLLM's docker/Dockerfile).
_SERVES = re.compile(r"(?:^|/)vllm-openai(?:[:@-]|$)")


def split(line: str) -> list[str]:
    """A command line's words; quotes that do not close quote nothing."""
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def words(command: Sequence[object]) -> list[str]:
    """A command's words, with those inside ``bash -c '...'`` taken apart, flags spelt one way."""
    given = [str(word) for word in command]
    for place, word in enumerate(given[:-1]):
        if re.fullmatch(r"-[a-z]{0,4}c", word) and place and given[place - 1] in _SHELLS:
            given = split(given[place + 1].replace("\\\n", " "))
            break
        if word not in _SHELLS and not word.startswith("-"):
            break
    return [spelt(word) for word in given]


def spelt(word: str) -> str:
    """A flag as vLLM's parser reads it: underscores are dashes, short names are long."""
    name, equals, value = word.partition("=")
    if name in _SHORT:
        return _SHORT[name] + equals + value
    if name.startswith("--"):
        return name.replace("_", "-") + equals + value
    return word


def served(image: str, given: list[str], entrypoint: bool) -> list[str]:
    """The command that an image runs, if its own entrypoint is the server's."""
    if entrypoint or "serve" in given or not _SERVES.search(image):
        return given
    return ["vllm", "serve", *given]


def flag(command: Sequence[str], name: str) -> str | None:
    """A flag's last value; empty for a bare flag, None if it is absent."""
    found: str | None = None
    for number, word in enumerate(command):
        if word == name:
            following = command[number + 1 : number + 2]
            found = following[0] if following and not following[0].startswith("--") else ""
        elif word.startswith(name + "="):
            found = word.split("=", 1)[1]
        elif word == name.replace("--", "--no-", 1):
            found = None
    return found


def serves(command: Sequence[str]) -> bool:
    """Whether the command starts a server, as far as its words show."""
    return "serve" in command or any("api_server" in word for word in command)


def model(command: Sequence[str]) -> str:
    """The model that it names; empty if none."""
    if found := flag(command, "--model"):
        return found
    if "serve" in command:
        following = command[list(command).index("serve") + 1 :]
        if following and not following[0].startswith("-"):
            return following[0]
    return ""
