"""Loads a model bundle: the trained model on one CPU or GPU, unsharded, with the transform that encodes its inputs.

    ranker = load_bundle("runs/dlrm")                  # a run, its `model` folder, or a URL that fsspec reads
    ranker = load_bundle("models:/clicks@champion")    # a registered model, or `runs:/...` of MLflow
    ranker.predict(pandas_or_arrow_rows)               # scores of raw rows
    retriever = load_bundle("runs/two_tower")
    retriever.embed_queries(rows)                      # vectors to search an index with

It needs no GPU, no Ray and no process group, and runs no code from the bundle. Every file is checked against its checksum.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from recsys_ray.bundle.manifest import BundleError, Manifest
from recsys_ray.bundle.reader import BundleFolder, open_bundle
from recsys_ray.bundle.version_0_1 import old_settings
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.models.registry import build_task, model_config
from recsys_ray.models.task import BuildContext, Task
from recsys_ray.schema import Schema
from recsys_ray.serving.encoder import Encoder
from recsys_ray.serving.location import bundle_folder
from recsys_ray.serving.onnx_engine import PairEngine, is_installed, onnx_engine
from recsys_ray.serving.pair_scores import PairScores
from recsys_ray.serving.quantized import quantize_tables
from recsys_ray.serving.ranker import Ranker
from recsys_ray.serving.retriever import Retriever

log = logging.getLogger(__name__)
TablePrecision = Literal["fp32", "fp16", "int8"]
InferenceEngine = Literal["auto", "torch", "onnx", "onnx-int8"]


def load_bundle(
    location: str | Path,
    *,
    device: str = "cpu",
    tables: TablePrecision = "fp32",
    engine: InferenceEngine = "torch",
    verify: bool = True,
) -> Ranker | Retriever:
    """Loads the bundle of a run, a folder, a URL or a model that is registered in MLflow.

    Args:
        tables: the type in which embeddings are kept; fp16 halves them and int8 quarters them, at a small loss.
        engine: what runs the dense part of a ranking model. onnx is faster on CPUs, needs the extra `serving` and some seconds to
            load; onnx-int8 rounds the weights too, at a small loss; auto is onnx on a CPU where it is installed and can run the
            model, else torch.
        verify: compare every file with its checksum, which reads the whole bundle once more.

    Raises FileNotFoundError where there is no bundle, BundleError for one that is damaged or not to be trusted.
    """
    bundle = open_bundle(bundle_folder(str(location)))
    if verify:
        bundle.verify()
    schema = Schema.load(bundle.folder / "schema.json")
    task = load_task(bundle, schema)
    if tables != "fp32":
        quantize_tables(task.module, tables)
    task.module.to(device).eval()
    encoder = Encoder(schema, build_lookups(load_vocabularies(bundle.folder, schema)))
    if task.towers is not None:
        return Retriever(bundle.manifest, encoder, task, torch.device(device))
    return Ranker(bundle.manifest, encoder, task, torch.device(device), pair_engine(task, schema, engine, device))


def load_task(bundle: BundleFolder, schema: Schema) -> Task:
    """Builds the model of a bundle on the CPU, unsharded, with its weights; it can predict but not train."""
    task = task_without_weights(bundle, schema)
    check_tensors(bundle, task)
    task.module.load_state_dict({name: bundle.read_tensor(name) for name in bundle.manifest.tensors}, assign=True)
    return task


def check_tensors(bundle: BundleFolder, task: Task) -> None:
    """Raises BundleError unless names and shapes of the bundle's tensors are those of the model."""
    expected, found = {name: tuple(one.shape) for name, one in task.module.state_dict().items()}, bundle.manifest.tensors
    if different := [name for name in expected | found if name not in found or found[name].shape != expected.get(name)]:
        raise BundleError(f"{bundle.folder}: {', '.join(different[:3])} does not fit a {bundle.manifest.model} of its settings")


def task_without_weights(bundle: BundleFolder, schema: Schema, device: str = "cpu") -> Task:
    """Builds the model of a bundle without its weights, tables on `meta`: next to no work, to learn what it is."""
    settings = bundle.folder / "config.json"
    config = model_config(json.loads(settings.read_text()) if settings.exists() else old_settings(bundle.folder)["model"])
    with torch.random.fork_rng(devices=[]):  # building draws weights, which the bundle's replace
        return build_task(config, BuildContext(schema, torch.device(device)))


class RankingBundle(NamedTuple):
    """The opened bundle of a ranking model, and the model without its weights."""

    bundle: BundleFolder
    schema: Schema
    task: Task


def open_ranking_bundle(location: str, device: str = "cpu") -> RankingBundle:
    """Opens and checks all of a bundle but its weights, which may be more than this machine holds.

    Raises ValueError where it is no ranking model, and like `load_bundle`.
    """
    bundle = open_bundle(bundle_folder(location))
    bundle.verify([path for path in bundle.manifest.files if not path.endswith(".safetensors")])
    schema = Schema.load(bundle.folder / "schema.json")
    task = task_without_weights(bundle, schema, device)
    if task.towers is not None:
        raise no_ranker(location, bundle.manifest)
    check_tensors(bundle, task)
    return RankingBundle(bundle, schema, task)


def pair_engine(task: Task, schema: Schema, engine: InferenceEngine, device: str) -> PairEngine | None:
    """Returns the engine of a ranking model's dense part, None for PyTorch. Raises ValueError for one that cannot run it."""
    if engine == "torch":
        return None
    if engine == "auto":
        if device != "cpu" or task.split is None or not is_installed():
            return None
        try:
            return pair_engine(task, schema, "onnx", device)
        except ValueError as error:
            log.warning("PyTorch runs the dense part of the model: %s", error)
            return None
    if device != "cpu":
        raise ValueError(f"engine {engine} runs on a CPU, and the device is {device}: use engine torch")
    if task.split is None:
        raise ValueError(f"engine {engine} runs models that can be split (Task.split), and this one cannot: use engine torch")
    return onnx_engine(PairScores(task.split, schema), task.split.dim, int8=engine == "onnx-int8")


def load_ranker(location: str | Path, **options: str) -> Ranker:
    """Loads a bundle as `load_bundle` does. Raises ValueError where it is no ranking model."""
    found = load_bundle(location, **options)  # type: ignore[arg-type]
    if not isinstance(found, Ranker):
        raise no_ranker(location, found.manifest)
    return found


def no_ranker(location: str | Path, manifest: Manifest) -> ValueError:
    """Returns the error to raise for a retrieval model where a ranking model is needed."""
    return ValueError(f"{location} holds a {manifest.model}, which retrieves: a ranking model is needed here")


def load_retriever(location: str | Path, **options: str) -> Retriever:
    """Loads a bundle as `load_bundle` does. Raises ValueError where it is no retrieval model."""
    found = load_bundle(location, **options)  # type: ignore[arg-type]
    if not isinstance(found, Retriever):
        raise ValueError(f"{location} holds a {found.manifest.model}, which ranks: a retrieval model is needed here")
    return found
