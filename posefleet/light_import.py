"""Reads the settings of a module without importing the libraries that the module needs, and imports a library
without another that it looks for.

A method's settings are in the file of its network, which imports torch, and that import takes seconds. ``--help`` needs
only the settings. So this module runs those statements of a file that need only the standard library and this project:
constants, types, functions and dataclasses. It leaves out every other statement.

The classes that it finds only describe options. They differ from the classes of the imported module, so no object of
them is passed on.
"""

import ast
import contextlib
import functools
import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parent


def light_import(module: str, name: str) -> Any:
    """The object ``name`` of ``module``; imports the module, and thereby torch, only if the object needs a library.

    Args:
        module: Full name of a module, such as ``posefleet.models.smpr``; one outside this project is imported.
    """
    if module.partition(".")[0] != PACKAGE:
        return getattr(importlib.import_module(module), name)
    namespace = _namespace(module)
    if name in namespace:
        return namespace[name]
    for statement in parsed(source_file(module)).body:  # a package re-exports names of its modules
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith(f"{PACKAGE}."):
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    return light_import(statement.module, alias.name)
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """Imports meanwhile find that ``package`` is not installed, unless it is imported already.

    For a library that uses a package wherever it is there, though its import takes long or does more than define names.
    """
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


def source_file(module: str) -> Path:
    """The source file of a module of this project, or of an imported one.

    Raises:
        ModuleNotFoundError: There is no such file.
    """
    imported = sys.modules.get(module)
    if module.partition(".")[0] != PACKAGE and imported and imported.__file__:
        return Path(imported.__file__)
    path = ROOT.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise ModuleNotFoundError(f"no module {module}", name=module)


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a Python file, cached."""
    return ast.parse(file.read_text())


@functools.cache
def _namespace(module: str) -> dict[str, Any]:
    """Names of ``module`` that need no library -> objects; all of its names if the module is already imported."""
    if module in sys.modules:
        return vars(sys.modules[module])
    try:
        file = source_file(module)
    except ModuleNotFoundError:  # platform/ has no __init__.py
        return {}
    namespace: dict[str, Any] = {"__name__": module, "__file__": str(file)}
    statements = parsed(file).body
    wanted = _names_outside_functions(statements)
    for statement in statements:
        # Leaves out a statement that needs a library, or a name of a statement that was left out.
        with contextlib.suppress(NameError, AttributeError, ImportError):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == PACKAGE:
                namespace.update(_imported(statement, wanted))
            elif not isinstance(statement, ast.Import | ast.ImportFrom) or _is_standard(statement):
                _run(statement, namespace)
    return namespace


def _imported(statement: ast.ImportFrom, wanted: set[str]) -> Iterator[tuple[str, Any]]:
    """(name, object) for each name in ``wanted`` that ``from posefleet... import ...`` defines without a library."""
    assert statement.module
    for alias in statement.names:
        name = alias.asname or alias.name
        if name not in wanted:
            continue
        found = _namespace(statement.module)
        if alias.name in found:
            yield name, found[alias.name]
        elif submodule := _namespace(f"{statement.module}.{alias.name}"):
            yield name, _Module(submodule)


def _names_outside_functions(statements: Iterable[ast.AST]) -> set[str]:
    """Names that are read when the statements run; bodies of functions do not run, so their names do not count."""
    found, waiting = set[str](), list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            found.add(node.id)
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


class _Module:
    """Stands for an imported submodule, so that ``module.name`` works."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.__dict__.update(namespace)


def _is_standard(statement: ast.Import | ast.ImportFrom) -> bool:
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
    return all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def _run(statement: ast.stmt, namespace: dict[str, Any]) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef):  # checks may use names that were left out, and no options are made
            node.body = [part for part in node.body if getattr(part, "name", "") != "__post_init__"]
        if isinstance(node, ast.FunctionDef):  # they may name torch.Tensor, and no option needs them
            node.returns = None
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
    exec(compile(ast.Module([statement], []), namespace["__file__"], "exec"), namespace)
