"""Private names of other libraries are used in recsys_ray/compat only, which refuses versions it was not checked for."""

from __future__ import annotations

import ast
from importlib import import_module, metadata, reload
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace

import pytest

import recsys_ray
from recsys_ray.compat import versions
from recsys_ray.compat.versions import require_version
from tests.support.private_names import inherited_private_names, mock_imports, private_attributes, private_imports

PACKAGE = Path(recsys_ray.__file__).parent
MODULES = sorted(file for file in PACKAGE.rglob("*.py") if file.parent.name != "compat")
COMPAT = sorted(file.stem for file in (PACKAGE / "compat").glob("*_compat.py"))
ABSENT = "99.1.0"


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def parsed(source: str) -> ast.Module:
    return ast.parse(dedent(source))


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 100 and {"streaming_compat", "ray_compat", "torch_compat", "spark_compat"} <= set(COMPAT)


@pytest.mark.unit
@pytest.mark.parametrize("file", MODULES, ids=dotted)
def test_no_private_name_of_another_library(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert [*private_imports(tree), *private_attributes(tree), *mock_imports(tree)] == []


@pytest.mark.parametrize("file", MODULES, ids=dotted)
def test_no_private_name_shared_with_a_base_class_of_another_library(file: Path) -> None:
    assert list(inherited_private_names(import_module(dotted(file)), ast.parse(file.read_text()))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ray._private.state",
        "from ray._raylet import GcsClient",
        "from torch.distributed.optim import _apply_optimizer_in_backward as apply",
        "def late():\n    from streaming.base.dataset import _Iterator",
    ],
)
def test_private_imports_are_found(source: str) -> None:
    assert len(list(private_imports(parsed(source)))) == 1


@pytest.mark.parametrize("source", ["from unittest.mock import patch", "import unittest.mock", "from unittest import mock"])
def test_mocks_are_found(source: str) -> None:
    assert len(list(mock_imports(parsed(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "spark.sparkContext._jsc.sc()",
        "placement._device = device",
        "self._dataset._shm_prefix_int",
        "super()._download_file(name)",
        "getattr(dataset, '_event')",
        "import_module('ray._private.state')",
        "class A:\n    def set(self):\n        self._own = 1\nother._own",
    ],
)
def test_private_attributes_are_found(source: str) -> None:
    assert len(list(private_attributes(parsed(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(0)",
        "class A:\n    def __init__(self):\n        self._own = 1\n    def same(self, other):\n        return other._own",
        "class A:\n    _own: int = 1\n    def make(cls):\n        return cls()._own",
        "torch.__version__",
    ],
)
def test_what_is_ours_or_public_is_allowed(source: str) -> None:
    assert list(private_attributes(parsed(source))) == []


@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("def _prepare_thread(self, it): pass", "_prepare_thread"),
        ("def any(self): return self._shard_states", "_shard_states"),
        ("def any(self): return super()._resume(1, 2)", "_resume"),
        ("def any(self): self._event = 1", "_event"),
        ("def any(self): return self._own", None),
    ],
)
def test_private_names_of_base_classes_are_found(method: str, shared: str | None) -> None:
    """Also by way of a class in compat, which is ours."""
    from recsys_ray.compat.streaming_compat import ExtensibleDataset

    module = ModuleType("ours")
    exec(f"class Ours(Base):\n    {method}", {"__name__": "ours", "Base": ExtensibleDataset}, vars(module))
    found = list(inherited_private_names(module, parsed(f"class Ours(Base):\n    {method}")))
    assert [line.split(" shares ")[1].split()[0] for line in found] == ([shared] if shared else [])


@pytest.mark.parametrize("name", COMPAT)
def test_compat_refuses_another_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"recsys_ray.compat.{name}")
    monkeypatch.setattr(metadata, "version", lambda package: ABSENT)
    with pytest.raises(ImportError, match=rf"^\S+ {ABSENT} is installed, .* checked for [\d. and]+ only: install one of these$"):
        reload(module)


@pytest.mark.parametrize(
    ("installed", "fits"), [("2.13.0", True), ("2.13.1+cu130", True), ("2.11+cpu", True), ("2.130.0", False), ("2.1.3", False)]
)
def test_versions_are_compared_by_their_first_two_numbers(installed: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda package: installed)
    if fits:
        require_version("torch", ["2.11", "2.13"])
    else:
        with pytest.raises(ImportError, match=rf"^torch {installed.replace('+', '.')} is installed"):
            require_version("torch", ["2.11", "2.13"])


def test_a_library_without_metadata_says_its_version_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", none)
    monkeypatch.setattr(versions, "import_module", lambda package: SimpleNamespace(__version__="4.0.1"))
    require_version("pyspark", ["4.0"])
    with pytest.raises(ImportError, match=r"^pyspark 4\.0\.1 is installed"):
        require_version("pyspark", ["4.3"])
