"""The house rules that no linter knows: small rooms and files, one meaning a name, few positional parameters, full sentences."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "recsys_ray"
FILES_IN_A_FOLDER, LINES_IN_A_FILE, POSITIONAL, SHARED_LINES = 12, 250, 4, 6
REQUIRED_BY_A_TABLE = {"MODEL", "check_tracking", "engine", "launcher", "open_index", "open_run", "viewing_hint", "write_index"}
"""Names that a lazy table asks every one of its modules for."""
LOCAL_IDIOMS = {"T", "log"}
FRAGMENT = re.compile(
    r"(Of|On|As|By|In|With|Where|What|Whether|How|The same|Until|Once|Like|For|To|From|At|None|Around|After|Before|Between)\b"
)
"""The first words of a docstring that only makes sense beside the name."""
Definition = ast.FunctionDef | ast.ClassDef


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text())


def definitions(tree: ast.AST) -> Iterator[Definition]:
    """Yields public functions and classes, of a module and of its public classes; not those within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node)


def public_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names = [node.name]
            case ast.Assign():
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def test_folders_hold_a_dozen_files_at_most() -> None:
    sizes = Counter(file.parent for file in PACKAGE.rglob("*.py"))
    assert {str(folder): size for folder, size in sizes.items() if size > FILES_IN_A_FOLDER} == {}


def test_files_are_short() -> None:
    lengths = {file.name: len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines > LINES_IN_A_FILE} == {}


def test_a_public_name_means_one_thing() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for file, tree in modules():
        for name in public_names(tree):
            places[name].add(file)
    repeated = {name: files for name, files in places.items() if len(files) > 1}
    assert {name: files for name, files in repeated.items() if name not in REQUIRED_BY_A_TABLE | LOCAL_IDIOMS} == {}


def test_functions_have_four_positional_parameters_at_most() -> None:
    long = {}
    for file, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                names = [parameter.arg for parameter in node.args.posonlyargs + node.args.args]
                if len([name for name in names if name not in ("self", "cls")]) > POSITIONAL:
                    long[f"{file}:{node.name}"] = names
    assert long == {}


def test_docstrings_begin_with_a_full_sentence() -> None:
    odd = {}
    for file, tree in modules():
        for node in [tree, *definitions(tree)]:
            text = ast.get_docstring(node) or "Nothing to judge."
            first = text.split("\n\n")[0]
            if FRAGMENT.match(first) or not first.rstrip('"').endswith((".", ":")):
                odd[f"{file}:{getattr(node, 'name', '')}"] = first
    assert odd == {}


def test_public_definitions_say_what_they_are() -> None:
    """A function with a parameter, a class, or a module without a docstring is a riddle more often than not."""
    silent = []
    for file, tree in modules():
        if not ast.get_docstring(tree) and tree.body:
            silent.append(file)
        silent += [f"{file}:{node.name}" for node in definitions(tree) if not ast.get_docstring(node)]
    assert silent == []


def test_jobs_share_no_block_of_lines() -> None:
    blocks: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for file in sorted((ROOT / "jobs").glob("*.py")):
        kept = [line.strip() for line in file.read_text().splitlines()]
        kept = [line for line in kept if line and not line.startswith(("from ", "import ", "#"))]
        for start in range(len(kept) - SHARED_LINES + 1):
            blocks[tuple(kept[start : start + SHARED_LINES])].add(file.name)
    assert {lines: files for lines, files in blocks.items() if len(files) > 1} == {}
