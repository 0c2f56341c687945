"""Hashed dependency locks, made by uv: one per release, strategy, platform and Python."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fp4forge import base as bases
from fp4forge import release
from fp4forge.errors import DriftError, ReleaseError, ToolError
from fp4forge.gpu import PLATFORMS
from fp4forge.paths import LOCKS
from fp4forge.release import Release

if TYPE_CHECKING:
    from fp4forge.plan import Plan

# Layers of installed packages, from the slowest to the fastest to change. vLLM is one of its own.
GROUPS = ("cuda", "torch", "python")
_TORCH = {"torch", "torchvision", "torchaudio", "triton"}
_UV_PLATFORM = {
    "linux/amd64": "x86_64-manylinux_2_39",
    "linux/arm64": "aarch64-manylinux_2_39",
}
TOOLS = "tools.txt"
_TOOLS_REQUIREMENTS = (
    "uv==0.13.9",
    "nvidia-cuda-cuobjdump==13.2.86",
    "nvidia-cuda-nvdisasm==13.2.86",
    "pyelftools==0.33",
)


@dataclass(frozen=True)
class LockName:
    """What a lock is resolved for."""

    release: str
    strategy: str
    platform: str
    python: str

    @property
    def file(self) -> str:
        """File name under ``releases/locks/``."""
        platform = self.platform.replace("/", "-")
        return f"{self.release}-{self.strategy}-{platform}-py{self.python.replace('.', '')}.txt"


def every() -> Iterator[LockName]:
    """All locks that releases and bases call for."""
    pythons = sorted({bases.load(name).python for name in bases.names()})
    for name in release.names():
        for strategy in release.load(name).strategies:
            for platform, python in itertools.product(PLATFORMS, pythons):
                yield LockName(name, strategy, platform, python)


def group_of(package: str) -> str:
    """The layer that a package belongs to."""
    if package == "vllm":
        return "vllm"
    if package in _TORCH:
        return "torch"
    return "cuda" if package.startswith("nvidia-") or package == "flashinfer-cubin" else "python"


def entries(text: str) -> dict[str, str]:
    """Package name and its lines (pin and hashes), from a lock's text."""
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", text))
    return {re.split(r"[=\[ ]", block, maxsplit=1)[0]: block for block in blocks if block.strip()}


def read(name: LockName) -> dict[str, str]:
    """A lock's entries.

    Raises:
        DriftError: the lock was never made.
    """
    path = LOCKS / name.file
    if not path.is_file():
        raise DriftError(f"there is no lock releases/locks/{name.file}", remedy="run build.py lock")
    return entries(path.read_text())


def layers(plan: Plan) -> dict[str, str]:
    """The plan's lock, split into one text per layer, with the build tools' lock.

    A cross compile adds the build platform's own packages, under ``host/``.
    """
    name = LockName(plan.release, plan.strategy, plan.platform, plan.python)
    texts = _by_layer(name)
    if plan.strategy == "source":
        what = release.load(plan.release)
        pin = f"vllm=={what.vllm_version} --hash=sha256:{what.sdist.sha256}\n"
        del texts["vllm"]
        # nvcc links these statically into what CMake tries; images have no archives.
        static = read(name)["nvidia-cuda-runtime"]
        texts |= {
            "runtime": static,
            "build": (LOCKS / build_file(plan.release)).read_text(),
            "sdist": pin,
        }
        for source, found in plan.sources.items():
            pins = [f"{w.requirement} --hash=sha256:{w.sha256}\n" for w in found.wheels]
            texts |= {f"source-{source}": "".join(pins)} if pins else {}
    if plan.cross:
        own = _by_layer(replace(name, platform=plan.cross.build))
        texts |= {f"host/{group}": own[group] for group in GROUPS}
    return texts | {"tools": (LOCKS / TOOLS).read_text()}


def _by_layer(name: LockName) -> dict[str, str]:
    texts = dict.fromkeys((*GROUPS, "vllm"), "")
    for package, block in read(name).items():
        texts[group_of(package)] += block
    return texts


def versions(plan: Plan) -> dict[str, str]:
    """Locked version of every package of the plan."""
    name = LockName(plan.release, plan.strategy, plan.platform, plan.python)
    found = {}
    for package, block in read(name).items():
        match = re.match(r"[^=]+==([^\s;]+)", block)
        assert match is not None, block[:80]
        found[package] = match[1]
    return found


def resolve(name: LockName) -> str:
    """Resolves one lock's text with uv, from uploads before the release's ``resolve_before``.

    Raises:
        ReleaseError: the requirements cannot be satisfied; uv's reason is in the message.
        ReleaseError: a wheel's hash is not the one that the release pins.
    """
    what = release.load(name.release)
    strategy = what.strategy(name.strategy)
    requirements = [f"vllm=={what.vllm_version}", *strategy.requirements]
    text = _compile(
        [*requirements],
        [*strategy.overrides],
        f"--python-platform={_UV_PLATFORM[name.platform]}",
        f"--python-version={name.python}",
        f"--exclude-newer={what.resolve_before}",
        "--only-binary=:all:",
    )
    parts = entries(text)
    if name.strategy == "wheel":
        _check_pinned(what, name, parts["vllm"])
        # The index lists every platform's wheel; only the pinned one may be installed.
        parts["vllm"] = (
            f"vllm=={what.vllm_version} \\\n    --hash=sha256:{what.wheels[name.platform].sha256}\n"
        )
    else:
        del parts["vllm"]  # compiled here; only its dependencies are taken
    header = (
        f"# GENERATED by `build.py lock` from releases/{name.release}.yaml. Do not edit.\n"
        f"# {name.strategy} strategy, {name.platform}, Python {name.python},"
        f" uploads before {what.resolve_before}.\n"
    )
    return header + "".join(parts.values())


def _check_pinned(what: Release, name: LockName, block: str) -> None:
    wheel = what.wheels[name.platform]
    if wheel.sha256 not in block:
        raise ReleaseError(
            f"releases/{what.release}.yaml: {wheel.file} has SHA-256 {wheel.sha256[:12]}…",
            rule="the package index does not list that hash for vllm " + what.vllm_version,
            remedy="correct the hash, or find out why the index changed",
        )


def _compile(requirements: list[str], overrides: list[str], *options: str) -> str:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise ToolError("uv is not installed beside this Python", remedy="run make setup")
    with tempfile.TemporaryDirectory() as folder:
        source, override = Path(folder, "in.txt"), Path(folder, "override.txt")
        source.write_text("\n".join(requirements) + "\n")
        override.write_text("\n".join(overrides) + "\n")
        command = [str(uv), "pip", "compile", str(source), "--override", str(override)]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--quiet", *options]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"},
        )
    if done.returncode != 0:
        raise ReleaseError(
            f"uv cannot resolve {', '.join(requirements[:2])}:\n{done.stderr.strip()}",
            rule="the release's requirements must agree with each other",
        )
    return done.stdout


def build_file(name: str) -> str:
    """File name of the lock of what compiling a release needs beside its dependencies."""
    return f"{name}-build.txt"


def resolve_build(name: str) -> str:
    """Resolves a release's build requirements, for every platform."""
    what = release.load(name)
    wanted = list(what.strategy("source").build_requirements)
    text = _compile(
        wanted, [], "--universal", "--python-version=3.12", f"--exclude-newer={what.resolve_before}"
    )
    header = f"# GENERATED by `build.py lock` from releases/{name}.yaml. Do not edit.\n"
    return header + "".join(entries(text).values())


def resolve_tools() -> str:
    """Resolves the build stages' own tools, for every platform."""
    text = _compile(list(_TOOLS_REQUIREMENTS), [], "--universal", "--python-version=3.12")
    return "# GENERATED by `build.py lock`. Do not edit.\n" + "".join(entries(text).values())


def resolve_all() -> dict[str, str]:
    """Every lock's file name and text; four resolutions at a time (they wait on the network)."""
    wanted = list(every())
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(resolve, wanted))
    builds = {
        build_file(name): resolve_build(name)
        for name in release.names()
        if "source" in release.load(name).strategies
    }
    locks = {name.file: text for name, text in zip(wanted, texts, strict=True)}
    return locks | builds | {TOOLS: resolve_tools()}


def write_all() -> list[str]:
    """Writes every lock; returns the names of those that changed."""
    LOCKS.mkdir(exist_ok=True)
    texts = resolve_all()
    changed = [name for name, text in texts.items() if _current(name) != text]
    for name in changed:
        (LOCKS / name).write_text(texts[name])
    for path in LOCKS.glob("*.txt"):
        if path.name not in texts:
            path.unlink()
            changed.append(path.name)
    return changed


def drift() -> list[str]:
    """Names of locks that differ from what their releases give now, with what differs."""
    lines = []
    for name, text in resolve_all().items():
        have, want = entries(_current(name)), entries(text)
        if have != want:
            pins = [
                package
                for package in sorted(have.keys() | want.keys())
                if have.get(package) != want.get(package)
            ]
            lines.append(f"{name}: {', '.join(pins)}")
    return lines


def _current(name: str) -> str:
    path = LOCKS / name
    return path.read_text() if path.is_file() else ""
