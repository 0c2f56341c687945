"""No module imports itself over others, late imports included."""

from __future__ import annotations

import grimp


def test_no_two_modules_import_each_other() -> None:
    graph = grimp.build_graph("fp4forge", exclude_type_checking_imports=True, cache_dir=None)
    circles = {
        frozenset((module, other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if graph.find_shortest_chain(importer=other, imported=module)
    }
    assert circles == set()
