"""Settings of a module without the libraries that the module needs.

The settings of a method stand beside its network, in a file that imports torch, and torch takes seconds. ``--help``
needs the settings alone. So this module runs the statements of a file that need nothing but the standard library and
this project: constants, types, functions and dataclasses. It leaves out every other statement.

The classes found in this way describe options. They are not the classes of the imported module: no object of theirs
is handed on.
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
    """``name`` of ``module``, without importing torch or any other library; of the imported module where it cannot.

    Args:
        module: Full name of a module of this project, such as ``posefleet.models.smpr``.
    """
    namespace = _namespace(module)
    if name in namespace:
        return namespace[name]
    for statement in parsed(source_file(module)).body:  # a package hands on what another file defines
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.startswith(f"{PACKAGE}."):
            for alias in statement.names:
                if name == (alias.asname or alias.name):
                    return light_import(statement.module, alias.name)
    return getattr(importlib.import_module(module), name)


def source_file(module: str) -> Path:
    """The file of a module of this project.

    Raises:
        ModuleNotFoundError: There is no such file.
    """
    path = ROOT.joinpath(*module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise ModuleNotFoundError(f"no module {module}", name=module)


@functools.cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(file.read_text())


@functools.cache
def _namespace(module: str) -> dict[str, Any]:
    """Names of ``module`` that need no library; all of them if it was imported before."""
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
        # A statement that needs a library, or a name that an earlier one would have set, is left out.
        with contextlib.suppress(NameError, AttributeError, ImportError):
            if isinstance(statement, ast.ImportFrom) and (statement.module or "").partition(".")[0] == PACKAGE:
                namespace.update(_imported(statement, wanted))
            elif not isinstance(statement, ast.Import | ast.ImportFrom) or _is_standard(statement):
                _run(statement, namespace)
    return namespace


def _imported(statement: ast.ImportFrom, wanted: set[str]) -> Iterator[tuple[str, Any]]:
    """Those of ``wanted`` that ``from posefleet... import ...`` gives, as far as they need no library."""
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
    """Names that are read when the statements run; functions are only defined then."""
    found, waiting = set[str](), list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name):
            found.add(node.id)
        if not isinstance(node, ast.FunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found


class _Module:
    """A submodule, for ``module.name``."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        self.__dict__.update(namespace)


def _is_standard(statement: ast.Import | ast.ImportFrom) -> bool:
    names = [statement.module or ""] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
    return all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def _run(statement: ast.stmt, namespace: dict[str, Any]) -> None:
    for node in ast.walk(statement):
        if isinstance(node, ast.ClassDef):  # checks may ask what was left out, and options are described, not checked
            node.body = [part for part in node.body if getattr(part, "name", "") != "__post_init__"]
        if isinstance(node, ast.FunctionDef):  # types of functions name torch.Tensor, and no option needs them
            node.returns = None
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
    exec(compile(ast.Module([statement], []), namespace["__file__"], "exec"), namespace)
