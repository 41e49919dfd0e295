"""Draw which room imports which, and check that no arrow runs up or in a circle.

python scripts/imports.py          the rooms from the top down, each with what it imports
python scripts/imports.py --dot    for Graphviz: python scripts/imports.py --dot | dot -Tsvg > imports.svg

Imports inside functions count; those under `if TYPE_CHECKING:` do not. Exit status: 1 if an arrow is wrong, and each
wrong one is named.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "fast_train"
# From the ground up. A room imports rooms of the floors below; on its own floor only where no circle comes of it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("common",),
    ("data_prep", "kernels"),
    ("pipeline.errors", "pipeline.device", "pipeline.paths"),
    ("pipeline.config", "pipeline.ranks"),
    ("pipeline.models", "pipeline.loaders", "pipeline.optim"),
    ("pipeline.engine",),
    ("pipeline.report", "pipeline.run"),
    ("pipeline.flags",),
    ("pipeline.commands", "pipeline.cli", "pipeline.predict_cli", "pipeline.export_cli", "pipeline.api"),
    ("benchmarks.instrument", "benchmarks.peers"),
    ("benchmarks.present",),
    ("benchmarks.throughput", "benchmarks.studies", "benchmarks.lab"),
)
# Rooms that import less than what lies below them.
ONLY: dict[str, tuple[str, ...]] = {"kernels": (), "data_prep": ("common",)}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: For each module or room, those that it imports, by names relative to the package; "" is the package itself.
Graph = dict[str, set[str]]


def read(package: Path) -> Graph:
    """The imports of all modules in a package's folder."""
    files = {}
    for folder, _, names in os.walk(package, followlinks=True):
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            module = ".".join(path.relative_to(package).with_suffix("").parts)
            files[module.removesuffix("__init__").rstrip(".")] = path
    graph: Graph = {module: set() for module in sorted(files)}
    for module, path in files.items():
        for root, _, name in (name.partition(".") for name in _imported(ast.parse(path.read_bytes()))):
            # A name is a module's own, or that of something in it.
            while root == package.name and name and name not in files:
                name = name.rpartition(".")[0]
            if root == package.name:
                graph[module].add(name)
    return graph


def _imported(tree: ast.AST) -> Iterator[str]:
    """The full names of what is imported anywhere in a syntax tree, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imported(node)


def room_of(module: str) -> str:
    """The room that a module lies in; the module's own name where it has none."""
    return next((room for room in FLOOR_OF if f"{module}.".startswith(f"{room}.")), module)


def rooms(graph: Graph) -> Graph:
    """The same graph with rooms in place of modules; an empty __init__.py is no room."""
    result: Graph = {}
    for module, imports in graph.items():
        if imports or room_of(module) in FLOOR_OF:
            result.setdefault(room_of(module), set()).update({*map(room_of, imports)} - {room_of(module)})
    return result


def problems(graph: Graph) -> Iterator[str]:
    """What is wrong, a line each. What has no floor, such as the package itself, lies above all."""
    for module, imports in graph.items():
        room = room_of(module)
        allowed = {room, *ONLY.get(room, (r for r in FLOOR_OF if FLOOR_OF[r] <= FLOOR_OF.get(room, 0)))}
        for target in sorted(imports):
            if room in FLOOR_OF and room_of(target) not in allowed:
                yield f"{module} imports {target or PACKAGE.name}, which lies above it or is not for it"
    for kind, drawn in (("modules", graph), ("rooms", rooms(graph))):
        try:
            graphlib.TopologicalSorter(drawn).prepare()
        except graphlib.CycleError as error:
            yield f"{kind} import each other in a circle: {' -> '.join(reversed(error.args[1]))}"


def main() -> int:
    """Print the drawing, and what is wrong on stderr; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE, help="its folder (default: ours)")
    parser.add_argument("--dot", action="store_true", help="for Graphviz")
    flags = parser.parse_args()
    graph = read(flags.package)
    drawn = sorted(rooms(graph).items(), key=lambda item: FLOOR_OF.get(item[0], len(FLOORS)), reverse=True)
    if flags.dot:
        print("digraph imports {\nnode [shape=box]")
        for room, imports in drawn:
            print("\n".join(f'"{room}" -> "{target}"' for target in sorted(imports)))
        print("}")
    else:
        for room, imports in drawn:
            print(f"{room or '(package)':22} -> {', '.join(sorted(imports)) or '-'}")
    found = list(problems(graph))
    print("".join(f"{line}\n" for line in found), end="", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
