"""Draw which room imports which, and check that no arrow runs up or in a circle.

python scripts/imports.py          the rooms from the top down, each with what it imports
python scripts/imports.py --dot    for Graphviz: python scripts/imports.py --dot | dot -Tsvg > imports.svg

Imports inside functions count; those under `if TYPE_CHECKING:` do not. Exit status: 1 if an arrow is wrong, and each
wrong one is named with its file.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "fast_train"
# From the ground up. A room imports rooms of the floors below; on its own floor only where no circle comes of it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("common",),
    ("data_prep", "kernels"),
    ("pipeline.errors", "pipeline.device"),
    ("pipeline.config",),
    ("pipeline.flags", "pipeline.models", "pipeline.loaders", "pipeline.optim"),
    ("pipeline.engine",),
    ("pipeline.report", "pipeline.run"),
    ("pipeline.flags",),
    ("pipeline.commands", "pipeline.cli", "pipeline.api"),
    ("benchmarks.instrument", "benchmarks.peers"),
    ("benchmarks.present",),
    ("benchmarks.throughput", "benchmarks.studies", "benchmarks.lab"),
)
# Rooms that import less than what lies below them.
ONLY: dict[str, tuple[str, ...]] = {"kernels": (), "data_prep": ("common",)}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

#: For each module, the modules that it imports.
Graph = dict[str, set[str]]


def read(package: Path) -> Graph:
    """The imports of all modules in a package's folder, by names relative to the package; "" is the package itself."""
    files = {}
    for folder, _, names in os.walk(package, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                parts = (Path(folder) / name).relative_to(package).with_suffix("").parts
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = Path(folder) / name
    return {
        module: {
            _module_of(".".join(parts[1:]), files)
            for parts in (name.split(".") for name in _imported(ast.parse(path.read_bytes())))
            if parts[0] == package.name
        }
        for module, path in sorted(files.items())
    }


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


def _module_of(name: str, modules: Iterable[str]) -> str:
    """The module that a name is, or comes from."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """The room that a module lies in; the module's own name where it has none."""
    return next((room for room in FLOOR_OF if f"{module}.".startswith(f"{room}.")), module)


def rooms(graph: Graph) -> Graph:
    """The same graph with rooms in place of modules."""
    result: Graph = {}
    for module, imports in graph.items():
        result.setdefault(room_of(module), set()).update(map(room_of, imports))
    # An empty __init__.py is no room.
    return {room: imports - {room} for room, imports in result.items() if imports or room in FLOOR_OF}


def wrong(source: str, target: str) -> bool:
    """Whether a room may not import another one. What has no floor, such as the package itself, lies above all."""
    if source == target or source not in FLOOR_OF:
        return False
    if target not in FLOOR_OF or target not in ONLY.get(source, FLOOR_OF):
        return True
    return FLOOR_OF[target] > FLOOR_OF[source]


def circle(graph: Graph) -> list[str]:
    """Names that lead back to the first by their imports; empty if there are none."""
    done: set[str] = set()

    def first(names: Iterable[str], path: list[str]) -> list[str]:
        return next(filter(None, (visit(name, path) for name in sorted(names))), [])

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :] + [name]
        found = [] if name in done else first(graph.get(name, ()), [*path, name])
        done.add(name)
        return found

    return first(graph, [])


def problems(graph: Graph) -> list[str]:
    """What is wrong, a line each."""
    found = [
        f"{source} imports {target or PACKAGE.name}, which lies above it or is not for it"
        for source, targets in graph.items()
        for target in sorted(targets)
        if wrong(room_of(source), room_of(target))
    ]
    for kind, drawn in (("modules", graph), ("rooms", rooms(graph))):
        names = circle(drawn)
        if names:
            found.append(f"{kind} import each other in a circle: {' -> '.join(names)}")
    return found


def as_text(graph: Graph) -> str:
    """The rooms from the top down."""
    ordered = sorted(graph, key=lambda room: FLOOR_OF.get(room, len(FLOORS)), reverse=True)
    width = max(map(len, ordered))
    return "\n".join(f"{room or '(package)':{width}} -> {', '.join(sorted(graph[room])) or '-'}" for room in ordered)


def as_dot(graph: Graph) -> str:
    """The rooms for Graphviz, a floor in a row, wrong arrows in red."""
    floors = ["{rank=same; " + "; ".join(f'"{room}"' for room in row if room in graph) + "}" for row in FLOORS]
    arrows = [
        f'"{source}" -> "{target}"' + (" [color=red]" if wrong(source, target) else "")
        for source, targets in graph.items()
        for target in sorted(targets)
    ]
    return "\n".join(["digraph imports {", "node [shape=box]", *floors, *arrows, "}"])


def main() -> int:
    """Print the drawing, and what is wrong on stderr; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=PACKAGE, help="its folder (default: ours)")
    parser.add_argument("--dot", action="store_true", help="for Graphviz")
    flags = parser.parse_args()
    graph = read(flags.package)
    print((as_dot if flags.dot else as_text)(rooms(graph)))
    found = problems(graph)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
