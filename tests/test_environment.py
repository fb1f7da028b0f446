"""Environment variables that are set for a while."""

from __future__ import annotations

import os

import pytest

from recsys_ray.environment import environment

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_RAY_SET", "before")
    monkeypatch.delenv("RECSYS_RAY_UNSET", raising=False)


def test_variables_are_set_and_restored() -> None:
    with environment({"RECSYS_RAY_SET": "now", "RECSYS_RAY_UNSET": "now"}):
        assert os.environ["RECSYS_RAY_SET"] == os.environ["RECSYS_RAY_UNSET"] == "now"
    assert os.environ["RECSYS_RAY_SET"] == "before" and "RECSYS_RAY_UNSET" not in os.environ


def test_variables_are_restored_after_an_error_and_after_the_body_changed_them() -> None:
    with pytest.raises(KeyError), environment({"RECSYS_RAY_SET": "now", "RECSYS_RAY_UNSET": "now"}):
        del os.environ["RECSYS_RAY_UNSET"]
        os.environ["RECSYS_RAY_SET"] = "later"
        raise KeyError
    assert os.environ["RECSYS_RAY_SET"] == "before" and "RECSYS_RAY_UNSET" not in os.environ


def test_other_variables_keep_what_the_body_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_RAY_OTHER", "before")
    with environment({}):
        os.environ["RECSYS_RAY_OTHER"] = "later"
    assert os.environ["RECSYS_RAY_OTHER"] == "later"
