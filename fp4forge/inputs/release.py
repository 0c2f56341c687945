"""Releases: what goes into an image, read from ``releases/<version>.yaml``."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fp4forge.core.errors import ReleaseError, UsageError
from fp4forge.core.paths import RELEASES
from fp4forge.kernels.gpus import GPUS

VARIANTS = ("awq", "plain")
STRATEGIES = ("source", "wheel")


@dataclass(frozen=True)
class Artefact:
    """A file on the package index, pinned by its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Strategy:
    """What a build strategy adds to the release: requirement specifiers (PEP 508)."""

    requirements: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    build_requirements: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeaveOut:
    """Files of installed packages that the requested GPUs do not need."""

    glob: str
    why: str
    unless: tuple[str, ...] = ()
    gb: float = 0.0  # what the files take unpacked, for GPUs that keep them

    def applies(self, gpus: tuple[str, ...]) -> bool:
        """Whether an image for these GPUs goes without the files."""
        return not set(self.unless) & set(gpus)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that carries sources: ``folder`` of it goes to ``into``."""

    requirement: str  # NAME==VERSION
    sha256: str
    folder: str
    into: str = "."

    @property
    def glob(self) -> str:
        """Matches the wheel's file name."""
        name, _, version = self.requirement.partition("==")
        return f"{name.replace('-', '_')}-{version}-*.whl"


@dataclass(frozen=True)
class External:
    """Sources that vLLM's CMake takes from elsewhere, at the commit or tag that it pins."""

    git: str
    commit: str
    variable: str  # names a local tree to vLLM's CMake
    pypi: tuple[Wheel, ...] = ()
    tag: str = ""  # what vLLM pins, where that is a tag

    @property
    def pinned(self) -> str:
        """vLLM's own pin, for people."""
        return f"{self.tag} ({self.commit[:12]})" if self.tag else self.commit


@dataclass(frozen=True)
class Release:
    """One release file, validated against ``releases/schema.json``."""

    release: str
    vllm_version: str
    sdist: Artefact
    wheels: dict[str, Artefact]
    wheel_arch_lists: dict[str, str]
    torch: str
    cuda: str
    transformers: str
    flashinfer: str
    arch_list: str
    resolve_before: str
    strategies: dict[str, Strategy]
    environment: dict[str, dict[str, str]]
    leave_out: tuple[LeaveOut, ...]
    unpacked_gb: float
    aot_all_gb: float
    externals: dict[str, External]

    @property
    def epoch(self) -> int:
        """SOURCE_DATE_EPOCH of images of this release: the day its locks end, in seconds UTC."""
        from datetime import UTC, datetime

        return int(datetime.fromisoformat(self.resolve_before).replace(tzinfo=UTC).timestamp())

    def strategy(self, name: str) -> Strategy:
        """The strategy's requirements.

        Raises:
            UsageError: this release cannot be built that way.
        """
        if name not in self.strategies:
            raise UsageError(
                f"release {self.release} has no {name} strategy",
                rule=f"it can be built from: {', '.join(self.strategies)}",
                remedy=f"--from {next(iter(self.strategies))}, or another --release"
                f" ({', '.join(names())})",
            )
        return self.strategies[name]


def names() -> tuple[str, ...]:
    """Names of all releases, oldest first."""
    from packaging.version import Version

    return tuple(sorted((p.stem for p in RELEASES.glob("[0-9]*.yaml")), key=Version))


@functools.cache
def _schema() -> Any:
    return json.loads((RELEASES / "schema.json").read_text())


def parse(text: str, where: str) -> Release:
    """Parses one release file.

    Args:
        text: the YAML.
        where: its path, for messages.

    Raises:
        ReleaseError: the text is no YAML, or breaks the schema; the message names the field.
    """
    import jsonschema_rs
    import yaml

    try:
        data = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise ReleaseError(
            f"{where}{line} is not valid YAML: {getattr(error, 'problem', error)}",
            rule="releases are YAML files that follow releases/schema.json",
        ) from None
    # Python's $ matches before a final newline, which would end a Dockerfile's line.
    for value in _strings(data):
        if not value.isprintable():
            raise ReleaseError(
                f"{where}: {value!r} has a control character", rule="values are printable text"
            )
    problems = sorted(
        jsonschema_rs.Draft202012Validator(_schema()).iter_errors(data),
        key=lambda problem: [str(part) for part in problem.instance_path],
    )
    if problems:
        said = [
            f"{'.'.join(map(str, problem.instance_path)) or '(top level)'}: {problem.message}"
            for problem in problems
        ]
        path = problems[0].schema_path[:-1]
        broken = functools.reduce(lambda part, key: part[key], path, _schema())
        raise ReleaseError(
            f"{where}: " + "\n  ".join(said),
            rule="releases follow releases/schema.json",
            remedy=broken.get("description", "") if isinstance(broken, dict) else "",
        )
    strangers = {gpu for rule in data["leave_out"] for gpu in rule.get("unless", ())} - set(GPUS)
    if strangers:
        raise ReleaseError(
            f"{where}: leave_out.unless: {', '.join(sorted(strangers))}",
            rule="GPUs that fp4forge knows: " + ", ".join(GPUS),
        )
    stem = Path(where).stem
    if data["release"] != stem:
        raise ReleaseError(
            f"{where}: release is {data['release']!r}", rule="it equals the file's name"
        )
    return _from_data(data)


def check_version(text: str) -> str:
    """A version after validation.

    Raises:
        UsageError: it does not have the form of one.
    """
    if not re.fullmatch(r"[0-9][0-9a-z.]*", text):
        raise UsageError(f"--vllm {text!r} is not a version", rule="digits, letters and dots")
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry)


def _from_data(data: dict[str, Any]) -> Release:
    vllm = data["vllm"]
    return Release(
        release=data["release"],
        vllm_version=vllm["version"],
        sdist=Artefact(**vllm["sdist"]),
        wheels={name: Artefact(**wheel) for name, wheel in vllm["wheels"].items()},
        wheel_arch_lists=vllm.get("wheel_arch_lists", {}),
        torch=data["torch"],
        cuda=data["cuda"],
        transformers=data["transformers"],
        flashinfer=data["flashinfer"],
        arch_list=data["arch_list"],
        resolve_before=data["resolve_before"],
        strategies={
            name: Strategy(**{key: tuple(values) for key, values in strategy.items()})
            for name, strategy in data["strategies"].items()
        },
        environment=data["environment"],
        leave_out=tuple(
            LeaveOut(rule["glob"], rule["why"], tuple(rule.get("unless", ())), rule.get("gb", 0.0))
            for rule in data["leave_out"]
        ),
        unpacked_gb=data["unpacked_gb"],
        aot_all_gb=data["aot_all_gb"],
        externals={name: _external(pin) for name, pin in data["externals"].items()},
    )


def load(name: str) -> Release:
    """Loads ``releases/<name>.yaml``.

    Raises:
        UsageError: there is no such release.
        ReleaseError: the file is malformed or breaks the schema.
    """
    path = RELEASES / f"{name}.yaml"
    if not re.fullmatch(r"[0-9][0-9a-z.]*", name) or not path.is_file():
        raise UsageError(
            f"--release {name!r} does not exist",
            rule="one of " + ", ".join(names()),
            remedy="docs/releases.md says how to add one",
        )
    return parse(path.read_text(), str(path.relative_to(RELEASES.parent)))


def _external(pin: dict[str, Any]) -> External:
    return External(**pin | {"pypi": tuple(Wheel(**wheel) for wheel in pin.get("pypi", ()))})
