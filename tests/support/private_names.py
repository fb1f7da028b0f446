"""Finds private names of other libraries in a module's source: in imports, in attributes, and in what a class inherits."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from textwrap import dedent
from types import ModuleType

ACCESSORS = {"getattr", "hasattr", "setattr", "delattr", "import_module"}
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
"""Public in spite of their names."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_imports(tree: ast.Module) -> Iterator[str]:
    """Yields imports from other libraries, but for the standard library, with a private name anywhere in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in imported:
            parts = name.split(".")
            if parts[0] != "recsys_ray" and parts[0] not in sys.stdlib_module_names and any(map(is_private, parts)):
                yield f"line {node.lineno}: imports {name}"


def mock_imports(tree: ast.Module) -> Iterator[str]:
    """Yields imports of anything in unittest."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [str(node.module)]
        else:
            continue
        yield from (f"line {node.lineno}: imports {name}" for name in modules if name.split(".")[0] == "unittest")


def private_attributes(tree: ast.Module) -> Iterator[str]:
    """Yields private attributes of other objects than self and cls, also by a string as in getattr.

    Allowed are those that the surrounding class defines itself, and those of modules of the standard library.
    """
    modules = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    } & sys.stdlib_module_names
    yield from _private_attributes(tree, modules, frozenset(NAMED_TUPLE))


def _private_attributes(node: ast.AST, modules: set[str], own: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        own |= defined_names(node)
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if owner not in {"self", "cls", *modules} and node.attr not in own:
            yield f"line {node.lineno}: uses {ast.unparse(node)}"
    if isinstance(node, ast.Call) and _called_name(node) in ACCESSORS:
        words = [word.value for word in node.args if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if any(is_private(part) and part not in own for word in words for part in word.split(".")):
            yield f"line {node.lineno}: uses {ast.unparse(node)}"
    for child in ast.iter_child_nodes(node):
        yield from _private_attributes(child, modules, own)


def _called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def defined_names(node: ast.ClassDef) -> set[str]:
    """Returns the names of a class's own methods and fields, and of what its methods assign to self or cls."""
    found = {item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    for item in ast.walk(node):
        match item:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def own_attributes(node: ast.ClassDef) -> set[str]:
    """Returns the names that a class defines, or uses through self, cls or super()."""
    used = set()
    for item in ast.walk(node):
        match item:
            case ast.Attribute(value=ast.Name(id="self" | "cls") | ast.Call(func=ast.Name(id="super")), attr=name):
                used.add(name)
    return used | defined_names(node)


def inherited_private_names(module: ModuleType, tree: ast.Module) -> Iterator[str]:
    """Yields the private names that a class of the module shares with a base class from another library."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef):
            continue
        defined = getattr(module, node.name, None)
        if not isinstance(defined, type):  # within a function
            continue
        names = {name for name in own_attributes(node) if is_private(name)} - NAMED_TUPLE
        for base in defined.__mro__[1:]:
            if is_foreign(base):
                for name in sorted(names & private_names_of(base)):
                    yield f"line {node.lineno}: {node.name} shares {name} with {base.__module__}.{base.__name__}"


def is_foreign(base: type) -> bool:
    """Returns whether a class belongs to neither this package nor Python."""
    top = base.__module__.split(".")[0]
    return top != "recsys_ray" and top not in sys.stdlib_module_names


@cache
def private_names_of(base: type) -> set[str]:
    """Returns the private names that a class has, or that its source uses of any object."""
    names = set(vars(base))
    try:
        source = inspect.getsource(base)
    except (OSError, TypeError):  # not written in Python
        source = ""
    if source:
        names |= {node.attr for node in ast.walk(ast.parse(dedent(source))) if isinstance(node, ast.Attribute)}
    return {name for name in names if is_private(name)}
