"""Prints the structure of the code: for every package its files, lines, import floors and arrows.

python tests/repository/structure.py            this checkout
python tests/repository/structure.py ../other   another one

A package is a folder with modules. An arrow is a module that imports another module of the same package; a floor is a
layer of modules that import only modules of lower floors. Packages of one root folder are counted in the same way.
"""

import ast
import functools
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("data", "models", "platform", "serve", "jobs")
Graph = dict[str, set[str]]


@functools.cache
def modules(root: Path = ROOT) -> dict[str, Path]:
    """Full module name -> file below ``root``, of the five folders; a package goes by its own name."""
    files = (path.relative_to(root) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))
    return {".".join(("posefleet", *f.with_suffix("").parts)).removesuffix(".__init__"): f for f in files}


def imported(source: str, known: Iterable[str]) -> set[str]:
    """The modules in ``known`` that a source imports, wherever in the file."""
    known, found = set(known), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
    return found & known


@functools.cache
def imports(root: Path = ROOT) -> Graph:
    """Module -> modules of the project that it imports."""
    files = modules(root)
    return {name: imported((root / path).read_text(), files) - {name} for name, path in files.items()}


def package_of(path: Path) -> str:
    """The folder of a module, such as ``platform/config``."""
    return path.parent.as_posix()


@functools.cache
def between_packages(root: Path = ROOT) -> Graph:
    """Package -> other packages that its modules import."""
    files, graph = modules(root), imports(root)
    result: Graph = {package_of(path): set() for path in files.values()}
    for name, targets in graph.items():
        here = package_of(files[name])
        result[here] |= {package_of(files[target]) for target in targets} - {here}
    return result


def floors(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Layers of a graph, lowest first; what lies on a circle or above one comes last, in one layer."""
    left = {name: {target for target in targets if target in graph} for name, targets in graph.items()}
    result = []
    while left:
        layer = {name for name, targets in left.items() if not targets} or set(left)
        result.append(layer)
        left = {name: targets - layer for name, targets in left.items() if name not in layer}
    return result


@functools.cache
def doors(root: Path = ROOT) -> dict[str, set[str]]:
    """Package -> names of its modules that other packages import."""
    files, graph = modules(root), imports(root)
    result: dict[str, set[str]] = {package_of(path): set() for path in files.values()}
    for name, targets in graph.items():
        for target in targets:
            if package_of(files[target]) != package_of(files[name]) and files[target].name != "__init__.py":
                result[package_of(files[target])].add(files[target].stem)
    return result


def report(root: Path = ROOT) -> str:
    """A table with a line for every package, and one for the packages of every root folder."""
    files, graph = modules(root), imports(root)
    packages = between_packages(root)
    rows = [("package", "files", "lines", "floors", "arrows", "doors")]
    open_doors = doors(root)
    for folder in FOLDERS:
        inside = {name: targets for name, targets in packages.items() if name.split("/")[0] == folder}
        for package in sorted(inside):
            members = [name for name, path in files.items() if package_of(path) == package]
            own = {name: graph[name] & set(members) for name in members if files[name].name != "__init__.py"}
            lines = sum((root / files[name]).read_text().count("\n") for name in members)
            arrows = sum(map(len, own.values()))
            rows.append(
                (
                    package,
                    f"{len(own)}",
                    f"{lines:,}",
                    f"{len(floors(own))}",
                    f"{arrows}",
                    f"{len(open_doors[package])}",
                )
            )
        if len(inside) > 1:
            arrows = sum(len(targets & set(inside)) for targets in inside.values())
            rows.append((f"= packages of {folder}/", f"{len(inside)}", "", f"{len(floors(inside))}", f"{arrows}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        " ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


if __name__ == "__main__":
    sys.stdout.write(report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT) + "\n")
