"""The structure of the tests: modules share code through tests/support, never through one another."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

TESTS = Path(__file__).parent
MODULES = sorted(TESTS.rglob("*.py"))


@cache
def nodes(module: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(module.read_text())))


def imported(module: Path) -> set[str]:
    """Returns the modules that a file imports anywhere, and each name that it imports from one as if it were a module."""
    found: set[str] = set()
    for node in nodes(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def code_in_strings(module: Path) -> str:
    return "\n".join(str(node.value) for node in nodes(module) if isinstance(node, ast.Constant))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(TESTS)))
def test_no_module_imports_a_test_module(module: Path) -> None:
    parts = [name.split(".") for name in imported(module)]
    assert [name for name in parts if name[0] == "tests" and (name[-1].startswith("test_") or "conftest" in name)] == []
    assert not [name for name in parts if name[0].startswith("test_")]
    code = code_in_strings(module)
    assert "import tests" + ".test_" not in code and "from tests" + ".test_" not in code


def test_the_modules_are_found() -> None:
    assert {"test_structure.py", "conftest.py", "support/runs.py", "chaos/test_chaos.py"} <= {
        str(module.relative_to(TESTS)) for module in MODULES
    }
    assert "tests.support.workers.run_workers" in imported(TESTS / "test_training.py")
