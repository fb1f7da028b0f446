"""Measures our step on a GPU at one batch size, and that of TorchRec's own modules in TorchRec's own pipeline."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torchrec.datasets.utils import Batch as TorchRecBatch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline.train_pipelines import (
    PrefetchTrainPipelineSparseDist,
    TrainPipelineFusedSparseDist,
    TrainPipelineSemiSync,
    TrainPipelineSparseDist,
)
from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.speed import usual_recipe
from benchmarks.speed.gpu.case import CUDA, DEVICE, PRECISION, STEPS, WARM, Case, Step, profile, synchronize, timed
from benchmarks.speed.workers import WORLD, stream
from recsys_ray.compat.torch_compat import apply_optimizer_in_backward
from recsys_ray.config import OptimizerConfig, ShardingConfig
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import make_step

Pipeline = Literal["sparse_dist", "fused_sparse_dist", "prefetch", "semi_sync"]
PIPELINES: dict[Pipeline, Any] = {
    "sparse_dist": TrainPipelineSparseDist,
    "fused_sparse_dist": TrainPipelineFusedSparseDist,
    "prefetch": PrefetchTrainPipelineSparseDist,
    "semi_sync": TrainPipelineSemiSync,
}


class Ours:
    """Our model of a case with its tables filled, trained as the trainer does."""

    def __init__(self, case: Case) -> None:
        schema, rates = case.source.dataset.schema, OptimizerConfig()
        self._case, self._task = case, build_task(case.config, BuildContext(schema, DEVICE, PRECISION))
        model = shard_model(
            self._task.module,
            WORLD,
            sharding=ShardingConfig(),
            optimizer=rates,
            local_batch=case.source.rows,
            lookup_type=PRECISION,
        )
        began = time.perf_counter()
        initialise_tables(model, 0.0, 0)
        synchronize()
        billions = sum(columns[0].num_embeddings for columns in schema.tables.values()) * case.dim / 1e9
        filled = (time.perf_counter() - began) / billions
        case.note("fill_seconds_per_billion", filled, f"{'tables filled':<36}{filled:>10.2f} s a billion numbers")
        optimizer = build_optimizer(model, rates)
        self._step = make_step(model, optimizer, WORLD, split=self._task.split, graphed_rows=case.source.rows)

    def resident(self) -> None:
        """Measures the first step, which compiles, and then steps on batches that are on the device."""
        batches = self._resident_batches()
        first = timed(self._step, batches, 1).seconds
        self._case.note("first_step_seconds", first, f"{'first step':<36}{first:>10.2f} s")
        timed(self._step, batches, WARM)
        self._case.note_steps("resident", "ours, resident", timed(self._step, batches, STEPS))
        self._case.note_peak("ours")
        timed(self._step, iter(()))  # a pipeline still holds the next batches

    def disk(self) -> None:
        """Measures the epoch that unpacks shards into an empty cache, and the next one."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            source = self._case.source
            train = stream(source.dataset.root, Path(folder, "shards"), source.rows, source.loaders)
            for epoch in ("first", "later"):
                self._epoch(train, epoch)

    def profile(self) -> None:
        """Prints what takes the time of a step on batches that are on the device."""
        batches = self._resident_batches()
        timed(self._step, batches, WARM)
        profile(self._step, batches, steps=STEPS // 3)
        timed(self._step, iter(()))

    def _resident_batches(self) -> Iterator[Batch]:
        return cycle([self._task.to_batch(columns) for columns in self._case.source.resident])

    def _epoch(self, train: BlockStream, epoch: str) -> None:
        """Times the steps after the first few, which wait for the data to start, and the whole epoch."""
        began, full = time.perf_counter(), self._case.source.full_batches(train)
        batches = map(self._task.to_batch, islice(train.on_device(DEVICE), full))
        timed(self._step, batches, WARM)
        rest = timed(self._step, batches)
        whole = time.perf_counter() - began
        self._case.note_steps(f"disk_{epoch}", f"ours, from disk, {epoch} epoch", rest)
        text = f"{'  with its first ' + str(WARM) + ' steps and its start':<36}{1e3 * whole / full:>10.2f} ms a step"
        self._case.note(f"disk_{epoch}_epoch_seconds", whole, f"{text}, {whole:.1f} s in all")


def measure_torchrec(case: Case) -> None:
    """Measures steps of TorchRec's modules in its usual pipeline on the same batches, with int64 ids, on the device.

    On a CPU, which TorchRec trains without a pipeline, the step is a plain one.
    """
    model = _torchrec_model(case)
    optimizer = _torchrec_optimizer(model)
    _measure_step(case, _pipelined("sparse_dist", model, optimizer) if CUDA else _plain(model, optimizer), "torchrec")
    case.note_peak("torchrec")


def measure_pipeline(case: Case, pipeline: Pipeline) -> None:
    """Measures the same in another of TorchRec's pipelines."""
    model = _torchrec_model(case)
    _measure_step(case, _pipelined(pipeline, model, _torchrec_optimizer(model)), f"torchrec_{pipeline}")


def _measure_step(case: Case, step: Step, name: str) -> None:
    batches = cycle([usual_recipe.to_batch(columns, case.source.dataset.schema) for columns in case.source.resident])
    timed(step, batches, WARM)
    way = name.removeprefix("torchrec").lstrip("_") or "resident"
    case.note_steps(name, f"TorchRec's modules, {way}", timed(step, batches, STEPS))


class Autocast(nn.Module):
    """A model under autocast; without it DLRMTrain would compute in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.train_module = module

    def forward(self, batch: TorchRecBatch) -> Any:
        with torch.autocast(DEVICE.type, dtype=PRECISION, enabled=PRECISION is not None):
            return self.train_module(batch)


def _torchrec_model(case: Case) -> DistributedModelParallel:
    schema, config = case.source.dataset.schema, case.config
    bags = usual_recipe.tables(config, schema)
    cross = (config.cross_layers, config.cross_rank) if case.interaction == "dcn" else ()
    layers = [*config.dense_layers, config.embedding_dim], [*config.over_layers, 1]
    kind = DLRM_DCN if case.interaction == "dcn" else DLRM
    train = DLRMTrain(kind(bags, len(schema.dense), *layers, *cross, dense_device=DEVICE))
    apply_optimizer_in_backward(RowWiseAdagrad, bags.parameters(), {"lr": OptimizerConfig().sparse_learning_rate})
    return DistributedModelParallel(Autocast(train), device=DEVICE)


def _torchrec_optimizer(model: DistributedModelParallel) -> CombinedOptimizer:
    parameters, rate = dict(in_backward_optimizer_filter(model.named_parameters())), OptimizerConfig().dense_learning_rate
    dense = KeyedOptimizerWrapper(parameters, lambda parameters: torch.optim.Adam(parameters, lr=rate))
    return CombinedOptimizer([model.fused_optimizer, dense])


def _pipelined(pipeline: Pipeline, model: DistributedModelParallel, optimizer: CombinedOptimizer) -> Step:
    return PIPELINES[pipeline](model, optimizer, DEVICE, execute_all_batches=True).progress


def _plain(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> Step:
    return lambda batches: usual_recipe.step(model, optimizer, next(batches))
