"""Data is never taken for code: what reads a file, a table or an error's text can run nothing that stands in it."""

from __future__ import annotations

import ast
import base64
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys_ray.data.engines.spark.task_results import carried_error, carrying_errors

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
SOURCES = [file for folder in ("recsys_ray", "jobs") for file in sorted((ROOT / folder).rglob("*.py"))]
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
WITHIN_ONE_JOB = {
    "recsys_ray/launch/ray_launcher.py": "the function and configuration that the driver sends to the workers it has started",
    "recsys_ray/data/engines/ray_data.py": "results of this job's own tasks, in a column that only they write",
    "recsys_ray/data/engines/spark/task_results.py": "results of this job's own tasks, in a column that only they write",
}
"""Files that unpickle what another process of the same job has pickled -> what that is."""


def data_run_as_code(source: str) -> Iterator[str]:
    """Yields the calls that run code which stands in their argument, and names of unpickling functions."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr="load" | "loads" | "Unpickler" | "open") if module in UNPICKLERS:
                yield f"{module}.{node.attr}"
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLERS:
                yield f"from {module}"
            case ast.Call(func=ast.Name(id="eval" | "exec" as name)):
                yield name
            case ast.Call(func=ast.Attribute(attr="read_pickle" | "unsafe_load" | "system" as name)):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load" | "load_all" | "full_load")):
                yield "yaml.load"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")) if not has(node, "weights_only"):
                yield "torch.load"
            case ast.Call() if has(node, "shell") or has(node, "allow_pickle"):
                yield "shell or allow_pickle"


def has(call: ast.Call, name: str) -> bool:
    """Returns whether the call has a keyword of this name that is not the constant False."""
    return any(one.arg == name and not (isinstance(one.value, ast.Constant) and not one.value.value) for one in call.keywords)


def test_nothing_runs_data_as_code() -> None:
    found = {str(file.relative_to(ROOT)): list(data_run_as_code(file.read_text())) for file in SOURCES}
    pickled = {name for name in WITHIN_ONE_JOB if all("pickle" in call for call in found[name])}
    assert {name: calls for name, calls in found.items() if calls and name not in pickled} == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(text)",
        "map(pickle.loads, texts)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(command, shell=True)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_what_runs_data_as_code_is_found(source: str) -> None:
    assert len(list(data_run_as_code(source))) == 1


@pytest.mark.parametrize(
    "source",
    ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "pickle.dumps(value)", "model.eval()", "np.load(path)"],
)
def test_what_only_reads_data_is_allowed(source: str) -> None:
    assert list(data_run_as_code(source)) == []


def carried(error: Exception) -> Exception | None:
    """Returns the error as the driver restores it from what a task raises."""

    def task(batches: object) -> Iterator[object]:
        raise error
        yield

    with pytest.raises(RuntimeError) as raised:
        list(carrying_errors(task)(iter(())))  # type: ignore[arg-type]
    return carried_error(f"Task failed: {raised.value} at org.apache.spark")


class Harmful:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_value_that_looks_like_our_error_runs_no_code(tmp_path: Path) -> None:
    """Spark quotes values in its errors, as in: [CAST_INVALID_INPUT] The value '...' of the type "STRING" cannot be cast."""
    value = base64.b64encode(pickle.dumps(Harmful(tmp_path / "harm"))).decode()
    for mark in ("recsys_ray error ", f"recsys_ray error {'0' * 32} "):
        assert carried_error(f"[CAST_INVALID_INPUT] The value '{mark}{value};' of the type STRING cannot be cast") is None
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "error",
    [ValueError("x; 'é' {}"), FileNotFoundError("gone"), OSError("no page"), OSError(28, "No space left on device", "/data/x")],
    ids=repr,
)
def test_an_error_keeps_what_the_driver_tells_it_apart_by(error: OSError | ValueError) -> None:
    found = carried(error)
    assert type(found) is type(error) and str(found) == str(error)
    assert getattr(found, "errno", None) == getattr(error, "errno", None)


def test_an_error_of_a_type_of_its_own_becomes_one_that_is_known() -> None:
    class Odd(ValueError):
        pass

    class Strange(Exception):
        pass

    assert repr(carried(Odd("a"))) == "ValueError('a')" and repr(carried(Strange("b"))) == "RuntimeError('Strange: b')"
