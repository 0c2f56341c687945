"""Names of classes and files say their room: no two public classes share one, no two files do."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from fp4forge.core.paths import PACKAGE, ROOT


def shared(package: Path) -> dict[str, list[str]]:
    """Names of public classes that several modules define, with the modules' paths."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(package).as_posix())
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_public_classes_share_a_name() -> None:
    assert shared(PACKAGE) == {}


def test_a_second_class_of_a_name_is_found(tmp_path: Path) -> None:
    for room in ("plan", "publish"):
        (tmp_path / room).mkdir()
        text = "class Report:\n    pass\n\n\nclass _Row:\n    pass\n"
        (tmp_path / room / "a.py").write_text(text, encoding="utf-8")
    assert shared(tmp_path) == {"Report": ["plan/a.py", "publish/a.py"]}


def test_no_two_files_share_a_name() -> None:
    """But a command's, and a program's that runs elsewhere; those are named for what they call."""
    apart = ("cli", "inside", "stages", "runtime")
    files = [p for p in PACKAGE.rglob("*.py") if not set(p.relative_to(PACKAGE).parts) & set(apart)]
    names = [path.name for path in files if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_every_room_is_in_the_architecture_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")} - {"."}
    rooms = {"image/runtime" if room.startswith("image/runtime/") else room for room in rooms}
    assert {room for room in rooms if f"| `{room}/` | " not in page} == set()
