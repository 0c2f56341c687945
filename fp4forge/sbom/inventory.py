"""Reads an image's files: its packages, and which package or rule each file belongs to.

It runs over the root folder of a container, by this machine's Python or the image's own, so it
needs the standard library alone. Nothing of the image is imported or run.
"""

from __future__ import annotations

import csv
import email.parser
import hashlib
import json
import os
import re
from typing import Any

INFO = "/var/lib/dpkg/info"
_LICENCE = re.compile(r"(?m)^License:[ \t]*(\S.*)$")


class RootTree:
    """The files of a root folder, by their absolute names in it; links are not followed out."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.folders: set[str] = {"/"}
        self.links: dict[str, str] = {}
        self.files: set[str] = set()
        self._real: dict[str, str] = {"": "", "/": ""}
        self._walk()

    def _walk(self) -> None:
        """Stays on the root's own device: /proc, and what an engine mounts, are not the image's."""
        device = os.lstat(self.root + "/").st_dev
        waiting = ["/"]
        while waiting:
            folder = waiting.pop()
            for entry in os.scandir(self.root + folder):
                name = os.path.join(folder, entry.name)
                if entry.is_symlink():
                    self.links[name] = os.readlink(entry.path)
                elif entry.stat(follow_symlinks=False).st_dev != device:
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    self.folders.add(name)
                    waiting.append(name)
                else:
                    self.files.add(name)

    def has(self, name: str) -> bool:
        """Whether there is a file or link of that real name."""
        return name in self.files or name in self.links

    def real(self, name: str) -> str:
        """A name with the links of its folders resolved, within the root; its own link stays."""
        folder, last = os.path.split(os.path.normpath(name))
        return os.path.join(self._real_folder(folder) or "/", last)

    def _real_folder(self, name: str, depth: int = 0) -> str:
        found = self._real.get(name)
        if found is None:
            parent, last = os.path.split(name)
            found = f"{self._real_folder(parent, depth)}/{last}"
            target = self.links.get(found)
            if target is not None and depth < 40:
                where = os.path.normpath(os.path.join(os.path.dirname(found), target))
                found = self._real_folder(where, depth + 1)
            self._real[name] = found
        return found

    def text(self, name: str) -> str:
        """A file's text; empty if there is none."""
        if self.real(name) not in self.files:
            return ""
        with open(self.root + self.real(name), encoding="utf-8", errors="replace") as file:
            return file.read()

    def bytes(self, name: str) -> bytes:
        """A file's content."""
        with open(self.root + self.real(name), "rb") as file:
            return file.read()


def run(root: str, rules: list[dict[str, str]], vendored: list[dict[str, str]]) -> dict[str, Any]:
    """What is installed, and what belongs to nothing.

    Args:
        root: the folder that is "/" to the image.
        rules: each has a name, a kind, and a pattern (a regular expression for whole names) unless
            its kind is ``bytecode`` or ``alternatives``. ``link``: only links to packages' files.
            ``absent``: files that a package lists and an image may lack.
        vendored: sources inside packages: path, and a file below it with a regular expression for
            the numbers of its version.

    Returns:
        ``os``: fields of os-release. ``debs`` and ``wheels``: the packages, each with the number of
        its ``files``. ``files``: how many there are. ``rules``: how many files belong to each rule.
        ``unowned``: files that belong to nothing. ``empty``: packages of which no file is there.
        ``vendored``: the version of each that is there, empty if it does not say.
    """
    tree = RootTree(root)
    debs, wheels = _debs(tree), _wheels(tree)
    absent = [re.compile(rule["pattern"]) for rule in rules if rule["kind"] == "absent"]
    owned: set[str] = set()
    empty: list[str] = []
    for package in [*debs, *wheels]:
        names = package.pop("names")
        there = {name for name in names if tree.has(name)}
        package["files"] = len(there)
        owned |= there
        lacking = [n for n in names if n not in there and n not in tree.folders]
        lost = [name for name in lacking if not any(p.fullmatch(name) for p in absent)]
        if not there and (lost or not names):
            empty.append(f"{package['name']} {package['version']}")
    counts: dict[str, int] = {}
    unowned = (tree.files | tree.links.keys()) - owned
    for rule in rules:
        if rule["kind"] != "absent":
            found = _belong(rule, tree, unowned, owned)
            counts[rule["name"]] = len(found)
            unowned -= found
    return {
        "os": _os(tree),
        "debs": debs,
        "wheels": wheels,
        "files": len(tree.files) + len(tree.links),
        "rules": counts,
        "unowned": sorted(unowned),
        "empty": sorted(empty),
        "vendored": {
            str(n): _package_version(tree, v) for n, v in enumerate(vendored) if _in(tree, v)
        },
    }


def _in(tree: RootTree, source: dict[str, str]) -> bool:
    return tree.has(tree.real(source["path"])) or tree.real(source["path"]) in tree.folders


def _package_version(tree: RootTree, source: dict[str, str]) -> str:
    if not source["file"]:
        return ""
    text = tree.text(os.path.join(source["path"], source["file"]))
    return ".".join(re.findall(source["pattern"], text))


def _belong(rule: dict[str, str], tree: RootTree, names: set[str], owned: set[str]) -> set[str]:
    if rule["kind"] == "bytecode":
        return {name for name in names if _bytecode_source(name) in owned}
    if rule["kind"] == "alternatives":
        return names & _alternatives(tree)
    pattern = re.compile(rule["pattern"])
    found = {name for name in names if pattern.fullmatch(name)}
    if rule["kind"] == "link":
        return {name for name in found if _leads_to(tree, name) & (owned | tree.folders)}
    return found


def _leads_to(tree: RootTree, name: str) -> set[str]:
    """Where a link ends, after other links; empty for a file."""
    for _ in range(40):
        target = tree.links.get(name)
        if target is None:
            return set()
        name = tree.real(os.path.join(os.path.dirname(name), target))
        if name not in tree.links:
            return {name}
    return set()


def _bytecode_source(name: str) -> str:
    """The module that a file of bytecode was compiled from (PEP 3147)."""
    folder, last = os.path.split(name)
    if not last.endswith(".pyc") or os.path.basename(folder) != "__pycache__":
        return ""
    return os.path.join(os.path.dirname(folder), last.split(".", 1)[0] + ".py")


def _alternatives(tree: RootTree) -> set[str]:
    """Links that update-alternatives(1) made, from its own records."""
    found = set()
    for record in tree.files:
        if os.path.dirname(record) != "/var/lib/dpkg/alternatives":
            continue
        found.add(f"/etc/alternatives/{os.path.basename(record)}")
        lines = tree.text(record).split("\n\n", 1)[0].splitlines()[1:]
        found.add(tree.real(lines[0]) if lines else "")
        for name, link in zip(lines[1::2], lines[2::2], strict=False):
            found |= {f"/etc/alternatives/{name}", tree.real(link)}
    return found


def _os(tree: RootTree) -> dict[str, str]:
    pairs = (line.partition("=") for line in tree.text("/usr/lib/os-release").splitlines())
    return {name: value.strip().strip("\"'") for name, _, value in pairs if name}


def _debs(tree: RootTree) -> list[dict[str, Any]]:
    """dpkg's packages (deb-control(5)), each with the files that it lists."""
    lines = tree.text("/var/lib/dpkg/diversions").splitlines()
    diverted = {tree.real(a): tree.real(b) for a, b in zip(lines[::3], lines[1::3], strict=False)}
    records: dict[str, set[str]] = {}  # of each package, in dpkg's own folder
    for path in tree.files:
        if path.startswith(INFO + "/"):
            stem = os.path.basename(path).rpartition(".")[0]
            records.setdefault(stem, set()).add(path)
    found = []
    for block in tree.text("/var/lib/dpkg/status").split("\n\n"):
        field = email.parser.HeaderParser().parsestr(block)
        if not field["Package"] or not (field["Status"] or "").endswith(" installed"):
            continue
        name, architecture = field["Package"], field["Architecture"]
        source, _, version = (field["Source"] or name).partition(" ")
        lists = [f"{INFO}/{name}.list", f"{INFO}/{name}:{architecture}.list"]
        listed = [tree.real(line) for each in lists for line in tree.text(each).splitlines()[1:]]
        stems = (name, f"{name}:{architecture}")
        own = {path for stem in stems for path in records.get(stem, ())}
        licences = _LICENCE.findall(tree.text(f"/usr/share/doc/{name}/copyright"))
        found.append(
            {
                "name": name,
                "version": field["Version"],
                "architecture": architecture,
                "source": source,
                "source_version": version.strip("()") or field["Version"],
                "licences": sorted({text.strip() for text in licences}),
                "names": {*own, *listed, *(diverted[name] for name in listed if name in diverted)},
            }
        )
    return sorted(found, key=lambda package: (package["name"], package["architecture"]))


def _wheels(tree: RootTree) -> list[dict[str, Any]]:
    """Installed wheels, each with the files of its RECORD (PEP 376)."""
    found = []
    for record in sorted(n for n in tree.files if n.endswith(".dist-info/RECORD")):
        folder = os.path.dirname(record)
        fields = email.parser.HeaderParser().parsestr(tree.text(f"{folder}/METADATA"))
        content = tree.bytes(record)
        rows = csv.reader(content.decode(errors="replace").splitlines())
        site = os.path.dirname(folder)
        classifiers = fields.get_all("Classifier") or []
        found.append(
            {
                "name": fields["Name"] or os.path.basename(folder),
                "version": fields["Version"] or "",
                "licence": fields["License-Expression"] or "",
                "stated": (fields["License"] or "").strip(),
                "classifiers": [c for c in classifiers if c.startswith("License ::")],
                "folder": folder,
                "record_sha256": hashlib.sha256(content).hexdigest(),
                "names": {tree.real(os.path.join(site, row[0])) for row in rows if row},
            }
        )
    return found


def main() -> None:
    """Reads its arguments, a JSON list, from standard input; prints what ``run`` returns."""
    import sys

    print(json.dumps(run(*json.load(sys.stdin))))


if __name__ == "__main__":
    main()
