"""One door to each thing outside: image references are parsed, and Docker is called, in oci/."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fp4forge.core.errors import UsageError
from fp4forge.core.paths import PACKAGE
from fp4forge.oci import reference, registry_tags
from fp4forge.oci.reference import ImageReference

Look = Callable[[ast.AST], Iterator[int]]
_PROGRAMS = ("docker", "docker-compose")
_CUTS = {"partition", "rpartition", "split", "rsplit"}
_NAMED = re.compile(r"(?<![a-z])(image|reference|repository|registry|tag)s?(?![a-z])")
# What is cut at "@", "/" or ":" and is not an image reference.
_NOT_IMAGES = {
    "oci/reference.py": "the one place",
    "advisories/vex.py": "a package URL, pkg:TYPE/NAME@VERSION",
    "cli/cluster.py": "an address of ssh, USER@HOST",
    "cli/cluster_files.py": "an address of ssh, USER@HOST",
    "launch/cluster/preflight.py": "an address of ssh, USER@HOST",
    "sbom/components.py": "the repository of a Git source, HOST/OWNER/NAME",
}
# What calls docker without fp4forge.oci.
_NO_OCI = {"launch/cluster/probe.py": "sent to another machine, whose Python has no fp4forge"}


def cuts(tree: ast.AST) -> Iterator[int]:
    """Lines on which an image reference is cut by hand."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value, name), args=[ast.Constant(sign), *_]):
                named = sign == "@" or (sign in (":", "/") and _NAMED.search(ast.unparse(value)))
                if name in _CUTS and named:
                    yield node.lineno


def calls(tree: ast.AST) -> Iterator[int]:
    """Lines with docker as a program's name: in a list of words, or as an argument."""
    for node in ast.walk(tree):
        match node:
            case ast.List(words) | ast.Tuple(words) | ast.Call(args=words):
                for word in words:
                    if isinstance(word, ast.Constant) and word.value in _PROGRAMS:
                        yield word.lineno


def found(look: Look, hint: str) -> set[str]:
    """Files of the package, of those with a hint in them, on a line of which something is found."""
    texts = {file: file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py")}
    return {
        str(file.relative_to(PACKAGE))
        for file, text in texts.items()
        if re.search(hint, text) and any(look(ast.parse(text)))
    }


def test_an_image_reference_is_cut_in_one_place() -> None:
    assert found(cuts, "partition|split") == set(_NOT_IMAGES)


def test_docker_is_called_through_oci_only() -> None:
    outside = {name for name in found(calls, "['\"]docker") if Path(name).parts[0] != "oci"}
    assert outside == set(_NO_OCI)


@pytest.mark.parametrize(
    ("look", "text"),
    [
        (cuts, 'a, _, b = name.partition("@")'),
        (cuts, 'repository, _, tag = entry.image.rpartition(":")'),
        (cuts, 'host = reference.repository.split("/", 1)[0]'),
        (calls, 'run(["docker", "logs", name])'),
        (calls, 'line = ("docker", "image", "inspect")'),
        (calls, 'shutil.which("docker")'),
    ],
)
def test_a_second_door_is_seen(look: Look, text: str) -> None:
    assert list(look(ast.parse(text)))


@pytest.mark.parametrize(
    ("text", "path"),
    [("localhost:5000/a/b:c", "a/b"), ("a/b", "a/b"), ("ghcr.io/a/b@sha256:" + "0" * 64, "a/b")],
)
def test_a_path_is_the_repository_without_its_host(text: str, path: str) -> None:
    assert reference.parse(text).path == path


def test_what_an_engine_lists_without_a_name_is_left_out() -> None:
    digest = "sha256:" + "1" * 64
    assert reference.listed(["<none>@<none>", f"a/b@{digest}"]) == [
        ImageReference("a/b", "", digest)
    ]
    assert reference.listed(None) == []


@pytest.mark.parametrize("text", ["name", "host.de/a:tag", "host.de/a@sha256:" + "0" * 64, ""])
def test_a_bundle_is_pushed_to_a_repository_of_a_registry(text: str) -> None:
    assert reference.bare("127.0.0.1:5000/a/b", "--to") == "127.0.0.1:5000/a/b"
    with pytest.raises(UsageError, match="--to"):
        reference.bare(text, "--to")


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("ubuntu:24.04@sha256:" + "0" * 64, "ubuntu:24.04"),
        ("fp4forge/base:bootstrap-amd64-0a1b", "fp4forge/base:bootstrap"),
        ("localhost:5000/base:bootstrap-arm64-0a1b", "localhost:5000/base:bootstrap"),
        ("scratch", "scratch"),
        ("", ""),
        ("Not A ImageReference", "Not A ImageReference"),
    ],
)
def test_a_base_has_one_kind_on_all_platforms(label: str, kind: str) -> None:
    assert registry_tags.base_kind(label) == kind
