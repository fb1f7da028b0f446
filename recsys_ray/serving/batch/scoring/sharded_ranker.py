"""A ranking model whose tables are sharded over the workers of a process group, for models that no host can hold."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from recsys_ray.columns import Columns
from recsys_ray.config import ShardingConfig
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.distributed import World
from recsys_ray.models.rows import pad_rows
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.bundle import open_ranking_bundle
from recsys_ray.serving.encoder import Encoder, with_unknown
from recsys_ray.serving.ranker import PREDICTED_AT_ONCE, Ranker, row_count
from recsys_ray.sharding.placement import placement_text, table_shards
from recsys_ray.sharding.sharded_model import shard_model
from recsys_ray.sharding.weights import load_weights

# Not print: Ray Train shows printed lines of its workers twice.
log = logging.getLogger(__name__)


class ScoringStopped(Exception):
    """Raised on every rank in the same round, when a stop is requested."""


@dataclass(frozen=True, kw_only=True)
class ShardedRanker(Ranker):
    """A Ranker whose embeddings are looked up in collectives, in which all ranks take part with equally many rows.

    Each call of `predict_encoded` with rows is a round. In a round every rank pads its rows to those of the rank that has most. A
    rank without any rows left calls `attend`, or the others would wait for it.
    """

    stop_requested: Callable[[], bool]

    @torch.no_grad()  # FBGEMM's kernels of tables that can be trained do not run in inference mode
    def predict_encoded(self, columns: Columns) -> np.ndarray:
        """Returns the score of every row, float32 [rows]. Raises ScoringStopped."""
        rows = row_count(columns, self.schema)
        if not rows:
            return np.zeros(0, np.float32)
        return self._scores(columns, self._most_rows(rows))[:rows]

    @torch.no_grad()
    def attend(self) -> None:
        """Takes part in the rounds of other ranks until none has rows left. Raises ScoringStopped."""
        nothing = self.encoder.encode(with_unknown(pa.table({}), self.schema.features), self.schema.features)
        while most := self._most_rows(0):
            self._scores(nothing, most)

    def _most_rows(self, rows: int) -> int:
        """Begins a round: returns the number of rows of the rank that has most, 0 where all ranks attend."""
        found = torch.tensor([rows, int(self.stop_requested())], device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        most, stop = found.tolist()
        if stop:
            raise ScoringStopped
        return most

    def _scores(self, columns: Columns, rows: int) -> np.ndarray:
        return self.task.predict(self.task.module, self._batch(pad_rows(columns, rows))).float().cpu().numpy()


def load_sharded_ranker(
    model: BatchModel, world: World, sharding: ShardingConfig, stop_requested: Callable[[], bool]
) -> ShardedRanker:
    """Plans and shards the tables as training does, and reads this rank's slices of them. Every rank calls it.

    Raises ValueError where another version has taken the model's place, or its tables do not fit into the workers' memory.
    """
    bundle, schema, task = open_ranking_bundle(model.location, str(world.device))
    model.check_version(bundle.manifest.version)
    sharded = shard_model(task.module, world, sharding=sharding, optimizer=None, local_batch=PREDICTED_AT_ONCE)
    if world.rank == 0:
        log.info("%s", placement_text(table_shards(sharded)))
    load_weights(sharded, bundle)
    sharded.eval()
    encoder = Encoder(schema, build_lookups(load_vocabularies(bundle.folder, schema)))
    # Not split: a look-up alone is a collective too.
    task = dataclasses.replace(task, module=sharded, split=None)
    return ShardedRanker(bundle.manifest, encoder, task, world.device, stop_requested=stop_requested)
