"""What is written as JSON is JSON: `NaN` and `Infinity`, which Python writes, are not."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from recsys_ray.checkpoint.store import MARKER, CheckpointStore
from recsys_ray.files.json_text import json_text
from recsys_ray.models.evaluation.binary_metrics import binary_metrics
from recsys_ray.reporting.outcome import read_outcome, with_undefined, write_outcome
from recsys_ray.reporting.summary import outcome_text
from recsys_ray.training.checkpointing.progress import Progress

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[1]
WRITERS = {"write_text", "write_bytes", "pipe_file", "log_text", "write"}


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_not_finite_is_null() -> None:
    values = {"a": [1.5, math.nan, (math.inf, "NaN")], "b": {"c": -math.inf, "d": None, "e": True}}
    assert json.loads(json_text(values), parse_constant=refuse) == {
        "a": [1.5, None, [None, "NaN"]],
        "b": {"c": None, "d": None, "e": True},
    }


def test_an_undefined_auc_is_null_in_the_outcome_and_the_job_says_why(tmp_path: Path) -> None:
    metrics = binary_metrics(np.full(4, 0.5, np.float32), np.zeros(4, np.float32), np.ones(4, np.float32))
    found = {f"test_{name}": value for name, value in metrics.items()}
    write_outcome(
        tmp_path,
        with_undefined({**found, "rows_per_second": 9.0, "world_size": 1, "headline": ["auc", "logloss"], "comparison": []}),
    )
    outcome = json.loads((tmp_path / "outcome.json").read_text(), parse_constant=refuse)
    assert (outcome["test_auc"], outcome["test_ne"], outcome["test_calibration"]) == (None, None, None)
    assert outcome["test_logloss"] == pytest.approx(math.log(2)) and set(outcome["undefined"]) == {
        "test_auc",
        "test_ne",
        "test_calibration",
    }
    text = outcome_text(read_outcome(tmp_path))
    assert text.startswith("test AUC undefined   test logloss 0.6931") and "test AUC: the test rows have labels of one" in text


def test_an_outcome_whose_numbers_are_all_defined_is_as_it_was() -> None:
    outcome = {"test_auc": 0.5, "steps": 3, "comparison": [{"name": "popular", "metrics": {"mrr": 0.1}}]}
    assert with_undefined(outcome) == outcome


def test_a_checkpoint_keeps_an_undefined_score(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    (tmp_path / "step_7").mkdir()
    progress = Progress(step=7, scores=[(3, math.nan), (7, -0.5)], validation=[{"step": 3, "auc": math.nan}])
    store.commit(7, {"note": vars(progress)})
    json.loads((tmp_path / "step_7" / MARKER).read_text(), parse_constant=refuse)
    found = Progress.from_note(store.marker(7)["note"])
    assert found.best_steps == [7, 3] and math.isnan(found.scores[0][1])


def test_files_are_written_without_nan() -> None:
    faults = []
    for file in sorted((ROOT / "recsys_ray").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in WRITERS:
                faults += [f"{file.name}:{inner.lineno}" for inner in ast.walk(call) if writes_nan(inner)]
    assert faults == []


def writes_nan(node: ast.AST) -> bool:
    """Returns whether this is a call of json.dumps that writes NaN."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="json"), attr="dumps")):
            return not any(one.arg == "allow_nan" for one in node.keywords)
    return False
