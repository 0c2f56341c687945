"""``releases/sbom.yaml`` as types: rules for files, vendored sources, spellings of licences."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated

from msgspec import Meta, Struct

from fp4forge.core.errors import ReleaseError
from fp4forge.core.paths import RELEASES
from fp4forge.inputs.reader import BrokenField, InputFormat, one_of

KINDS = ("files", "link", "bytecode", "alternatives", "absent")
WITHOUT_GLOBS = ("bytecode", "alternatives")

Text = Annotated[str, Meta(min_length=1)]
Glob = Annotated[
    str,
    Meta(
        pattern=r"^(/|\{site\}/)[A-Za-z0-9_.*{},@+/-]*$",
        description="a path; * stays inside a folder, ** crosses folders, {a,b} is one of them",
    ),
]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="a name")]
Path = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$",
        description="a path relative to another",
    ),
]


class UnownedFileRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files that no package lists, and why they are there."""

    name: Name
    kind: Annotated[str, one_of(KINDS, "what a file must be beside its name")] = "files"
    globs: tuple[Glob, ...] = ()
    why: Annotated[Text, Meta(description="why the files are there")]

    def __post_init__(self) -> None:
        """Checks that a rule has globs if its kind needs some."""
        if bool(self.globs) == (self.kind in WITHOUT_GLOBS):
            raise BrokenField(
                "globs", f"does not go with kind {self.kind}", "every other kind has some"
            )


class Vendored(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A source of another project inside a package."""

    name: Name
    of: Annotated[Name, Meta(description="the package that has it")]
    path: Annotated[Path, Meta(description="what of it is there, under the packages' folder")]
    version: Annotated[
        tuple[str, ...],
        Meta(max_length=2, description="a file below it, and a pattern of its version's numbers"),
    ] = ()
    external: Annotated[str, Meta(description="the release's name of its pin")] = ""
    repository: Annotated[
        str, Meta(pattern=r"^[a-z0-9.]+(/[A-Za-z0-9_.-]+)+$", description="where it comes from")
    ]
    licence: Annotated[Text, Meta(description="an SPDX expression")]

    def __post_init__(self) -> None:
        """Checks the pattern."""
        if self.version:
            if len(self.version) != 2:
                raise BrokenField("version", "is not a file and a pattern", "both, or neither")
            try:
                re.compile(self.version[1])
            except re.error as error:
                raise BrokenField("version", f"is not a pattern: {error}", "Python's re") from None


class LicenceTerms(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms that are not an open-source licence."""

    title: Text
    url: Annotated[str, Meta(pattern="^https://[!-~]+$", description="where they can be read")]
    text: Annotated[Text, Meta(description="what they mean for who hands an image on")]


class SbomRules(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an SBOM needs beside the image, the locks and the releases."""

    files: Annotated[tuple[UnownedFileRule, ...], Meta(min_length=1)]
    vendored: tuple[Vendored, ...] = ()
    spellings: Annotated[
        dict[Text, Text], Meta(description="a licence's name in metadata -> its SPDX expression")
    ] = {}
    terms: Annotated[
        dict[Annotated[str, Meta(pattern="^LicenseRef-[A-Za-z0-9.-]+$")], LicenceTerms],
        Meta(description="licences that SPDX has no name for"),
    ] = {}

    def rules(self, site: str) -> list[dict[str, str]]:
        """The rules as ``inventory.run`` takes them.

        Args:
            site: the folder of installed packages in the image.
        """
        return [
            {
                "name": rule.name,
                "kind": rule.kind,
                "pattern": "|".join(
                    expression(glob.replace("{site}", site)) for glob in rule.globs
                ),
            }
            for rule in self.files
        ]

    def sources(self, site: str) -> list[dict[str, str]]:
        """The vendored sources as ``inventory.run`` takes them."""
        return [
            {"path": f"{site}/{v.path}"}
            | dict(zip(("file", "pattern"), v.version or ("", ""), strict=True))
            for v in self.vendored
        ]


FORMAT = InputFormat(SbomRules, "sbom", ReleaseError, blocks=True)


@cache
def table() -> SbomRules:
    """The table.

    Raises:
        ReleaseError: it is not there, or is malformed.
    """
    return FORMAT.read(RELEASES / "sbom.yaml", "releases/sbom.yaml")


def expression(glob: str) -> str:
    """A regular expression for whole names that a glob matches."""
    parts = re.split(r"(\*\*/?|\*|\{[^}]*\})", glob)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}

    def translate(part: str) -> str:
        if part.startswith("{"):
            return "(?:" + "|".join(map(re.escape, part[1:-1].split(","))) + ")"
        return known.get(part, re.escape(part))

    return "(?:" + "".join(map(translate, parts)) + ")"


def site_of(python: str) -> str:
    """The folder of installed packages, for a version of Python such as 3.13."""
    return f"/usr/local/lib/python{python}/dist-packages"


def terms(found: SbomRules) -> str:
    """The page of terms that goes into the image, beside the pages of each layer's packages."""
    lines = [
        "# Licences",
        "",
        "This image redistributes the work of others. `cuda.md`, `torch.md`, `python.md` and",
        "`vllm.md` beside this page list each layer's Python packages, with their licences. A",
        "distribution package has its licence in `/usr/share/doc/PACKAGE/copyright`. The image's",
        "SBOM (docs/supply-chain.md) lists all of them.",
        "",
        "Models are not in the image. A checkpoint that it serves has terms of its own, such as",
        "Gemma's terms of use: whoever downloads it accepts them.",
        "",
        "## Terms that are not an open-source licence",
        "",
    ]
    for name, entry in sorted(found.terms.items()):
        lines += [f"### {name}", "", f"{entry.title}: <{entry.url}>", "", entry.text.strip(), ""]
    lines += ["## Sources of other projects inside packages", ""]
    lines += ["| source | inside | licence | repository |", "|---|---|---|---|"]
    lines += [f"| {v.name} | {v.of} | {v.licence} | {v.repository} |" for v in found.vendored]
    return "\n".join([*lines, ""])
