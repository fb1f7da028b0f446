"""Every knob on one page: frozen dataclasses, no torch. Jobs hold one literal of these; tyro overrides it on the command line
(`python jobs/train_dlrm.py --train.epochs 3 --launch.workers 8`)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class SplitConfig:
    """How rows are divided into train, validation and test."""

    by: Literal["random", "time", "leave_one_out", "column"] = "random"
    """random: by a hash of file and row. time: the latest rows are test, those before them validation. leave_one_out: each user's
    latest positive row is test, the one before it validation. column: as it says."""
    validation: float = 0.1
    """Fraction of rows, for random and time."""
    test: float = 0.1
    """Fraction of rows, for random and time."""
    column: str = ""
    """For `column`: the column that holds the words train, validation or test."""


@dataclass(frozen=True)
class PrepareConfig:
    """From Parquet to a dataset directory."""

    engine: Literal["ray", "spark"] = "ray"
    """What reads, shuffles and writes: Ray Data, or Spark. Both write the same dataset directory."""
    parquet: str = ""
    """Interactions: a Parquet file, folder, glob or object-store URL; on Spark also `table:catalog.schema.name` (or a view)."""
    users: str = ""
    """Optional Parquet of user columns, one row a user, joined on `user_key`. Must fit in a worker's memory, like `items`."""
    items: str = ""
    """Optional Parquet of item columns, one row an item, joined on `item_key`."""
    user_key: str = "user_id"
    item_key: str = "item_id"
    out: str = ""
    """The dataset directory to write, on a file system that all workers share."""
    schema: str = ""
    """A schema file; empty: the `schema.json` beside the Parquet."""
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0
    block_rows: int = 256
    """Rows in a row block, the unit that is stored, shuffled and batched."""
    max_rejected: float = 0.1
    """Give up, writing nothing, when more than this fraction of the rows is bad."""
    overwrite: bool = False
    """Replace an existing dataset directory, atomically."""
    grow_from: str = ""
    """A dataset directory of earlier data, such as yesterday's. Its vocabularies come first, as they are, then the values that
    are new, most frequent first; columns standardised in both keep its means and deviations. So a value keeps its row in the
    embedding table and a number its scale, and training may start from the weights of the earlier data. None of its values is
    dropped: `min_frequency` and `num_embeddings` of the schema limit the new ones."""


@dataclass(frozen=True)
class DataConfig:
    """What to train on: a prepared directory, raw Parquet, or with neither MovieLens 1M."""

    path: str = ""
    """A dataset directory written by jobs/prepare_data.py, on a file system that all workers share."""
    parquet: str = ""
    """Raw Parquet, prepared first; its schema is `--data.schema` or the `schema.json` beside it."""
    schema: str = ""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Of raw Parquet or MovieLens; a dataset directory has its own."""
    cache: str = ""
    """Folder on each node's own disk for unpacked copies of the shards, removed at the end; empty: the temporary folder."""
    loader_workers: int | None = None
    """Processes that decode blocks for each training worker; None: 2 on GPU, 0 (in the training process) on CPU."""
    num_canonical_nodes: int = 1
    """Mosaic Streaming's: fixes the order of rows for any number of nodes that divides it or is divided by it."""
    predownload: int = 1024
    """Blocks fetched ahead of training, per worker."""


@dataclass(frozen=True)
class DLRMConfig:
    """DLRM (Naumov et al. 2019), or with interaction dcn its variant with a cross network (DCNv2, Wang et al. 2020)."""

    interaction: Literal["dot", "dcn"] = "dot"
    embedding_dim: int = 16
    pooling: Literal["sum", "mean"] = "mean"
    """How the embeddings of a multi-valued column become one."""
    init_range: float = 0.0
    """Embeddings start uniform in ± this; 0: ± 1/sqrt(rows of the table)."""
    dense_layers: tuple[int, ...] = (64,)
    """Hidden layers of the bottom MLP; a last one of embedding_dim is added."""
    over_layers: tuple[int, ...] = (128, 64)
    """Hidden layers of the top MLP; a last one of 1 is added."""
    cross_layers: int = 3
    cross_rank: int = 64


@dataclass(frozen=True)
class TwoTowerConfig:
    """Two Tower retrieval (Covington et al. 2016; Yi et al. 2019): a query tower of user and context columns, a candidate tower
    of item columns; the score is the dot product of what they return."""

    embedding_dim: int = 64
    """Of the tables, and of both towers' vectors."""
    pooling: Literal["mean", "sum", "attention"] = "mean"
    """How the values of a multi-valued column become one vector; attention: weighted by a learned query and position."""
    pooled_values: int = 20
    """For attention: how many values of a row count, from the first."""
    init_range: float = 0.0
    """Embeddings start uniform in ± this; 0: ± 1/sqrt(rows of the table)."""
    query_layers: tuple[int, ...] = (128,)
    """Hidden layers; a last one of embedding_dim is added. Without any: the sum of the columns' embeddings, which of one column
    a side is matrix factorisation."""
    candidate_layers: tuple[int, ...] = (128,)
    dropout: float = 0.0
    """Of what goes into each tower, while training."""
    normalize: bool = False
    """Scale the vectors to length 1, so that a score is a cosine over the temperature."""
    temperature: float = 1.0
    loss: Literal["softmax", "bce"] = "softmax"
    """softmax: over the positive rows' items in the batches of all workers. bce: of each row's own label."""
    log_q: bool = True
    """Correct the softmax for items being in the batch by popularity."""
    uniform_negatives: int = 0
    """Items of the catalogue drawn into each worker's batch as negatives besides."""
    hard_negatives: int = 0
    """Average the loss with one over this many negatives alone, each row's highest-scoring; 0: do not."""
    metrics_at: tuple[int, ...] = (10, 20, 100)
    """The k of recall@k and its like; the first is that of early stopping."""
    group_by: str = ""
    """A single-valued user column: test metrics for each of its values."""
    ials: bool = False
    """Compare with iALS too, fitted on one worker to all training pairs; popularity is always compared with."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Embeddings are updated within the backward pass (fused); the dense part by Adam."""

    sparse: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    sparse_learning_rate: float = 0.05
    sparse_weight_decay: float = 0.0
    """L2, of the rows that a batch looks up."""
    dense_learning_rate: float = 1e-3
    dense_weight_decay: float = 0.0
    warmup_steps: int = 0
    """Steps over which both rates grow linearly to their value."""
    decay_steps: int = 0
    """Steps after warm-up over which both rates fall linearly to `final_rate` of their value; 0: no decay."""
    final_rate: float = 0.1
    clip_norm: float = 10.0
    """Largest global norm of the dense gradient; 0: no clipping."""


@dataclass(frozen=True)
class LoopConfig:
    epochs: int = 5
    global_batch: int = 4096
    """Rows in a step over all workers; a multiple of block_rows * workers."""
    max_steps: int = 0
    """Stop after this many steps; 0: no limit."""
    log_every: int = 50
    """Steps between progress lines and MLflow points."""
    patience: int = 2
    """Stop after this many epochs without a better validation metric (DLRM: NE, Two Tower: NDCG); 0: never stop early."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast of the dense part on GPUs that have it, fp32 elsewhere."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Written at the end of each epoch, on SIGTERM, and as often within an epoch as it says here; training goes on meanwhile."""

    folder: str = ""
    """Where they are kept: a folder that all workers share, or the URL of an object store, such as s3://bucket/run; empty:
    `checkpoints` in the run directory."""
    every_steps: int = 0
    """Steps between checkpoints within an epoch; 0: do not count steps."""
    every_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; 0: do not look at the clock."""
    keep_last: int = 2
    """How many of the newest are kept; with 1, a damaged one leaves nothing to go back to."""
    keep_best: int = 1
    """How many are kept besides, of the ends of epochs with the best validation metric."""
    grace_seconds: float = 25.0
    """How long SIGTERM leaves the workers to finish their step and write a checkpoint before they are ended."""


@dataclass(frozen=True)
class ShardingConfig:
    types: tuple[Literal["table_wise", "row_wise", "column_wise", "table_row_wise"], ...] = ("table_wise", "row_wise")
    """What the planner may choose from. With column_wise, row-wise Adagrad keeps a state for each shard's columns, and so trains
    differently on another number of workers. Data-parallel is left out: its tables would train with the dense optimizer."""
    memory_gib: float = 0.0
    """Memory a worker may use for tables and activations; 0: what its GPU, or its share of the host, has free."""


@dataclass(frozen=True)
class TrackingConfig:
    uri: str = ""
    """MLflow tracking URI; empty: SQLite, in `mlflow.db` beside the run directory."""
    experiment: str = "recsys_ray"
    log_weights_below_mib: int = 1024
    """Log the trained state dict as an artifact when it is smaller than this."""


@dataclass(frozen=True)
class RayConfig:
    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that each worker needs besides CPUs and GPUs, such as `accelerator_type:A10G 0.001`."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers on nodes."""
    runtime_env: str = ""
    """A YAML file with a Ray runtime environment for the workers."""
    wait_seconds: float = 900.0
    """How long to wait for an autoscaling cluster to provide the nodes asked for."""
    resize_seconds: float = 60.0
    """How often an elastic run looks whether it could have more workers."""
    on_spark: Literal["auto", "always", "never"] = "auto"
    """Start Ray on the nodes of a Spark cluster, and stop it afterwards; auto: on Databricks."""
    spark_nodes: tuple[int, int] = (1, 4)
    """Ray worker nodes on Spark: the autoscaler keeps between the first and the second."""
    spark_cpus_per_node: int | None = None
    """CPUs of such a node; None, for both this and the next: a Spark worker's CPUs and GPUs."""
    spark_gpus_per_node: int | None = None


@dataclass(frozen=True)
class SparkConfig:
    mode: Literal["auto", "driver", "cluster"] = "auto"
    """driver: workers on the driver's machine. cluster: one Spark task each. auto: driver for a local master, else cluster."""
    master: str = ""
    """Of the session to make where none is active, such as spark://host:7077; empty: this machine."""


@dataclass(frozen=True)
class LaunchConfig:
    engine: Literal["ray", "spark", "local"] = "ray"
    """ray: Ray Train. spark: TorchDistributor. local: torch elastic on this machine, no cluster."""
    workers: int = 1
    min_workers: int | None = None
    """Ray only: elastic, start with as few as these and go up to `workers` as nodes join; None: exactly `workers`."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    """None: one where the cluster has GPUs, none elsewhere. Spark and local know 0 and 1."""
    max_failures: int = 0
    """Times that failed workers are started again; training then goes on from the last checkpoint."""
    ray: RayConfig = field(default_factory=RayConfig)
    spark: SparkConfig = field(default_factory=SparkConfig)


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    run_dir: str = ""
    """Where everything ends up: checkpoints, outcome.json, report.html. Running again in it goes on."""
    init_from: str = ""
    """The run directory (or its `model` folder) of an earlier run whose weights a new run starts from, as far as names fit."""
    data: DataConfig = field(default_factory=DataConfig)
    model: DLRMConfig | TwoTowerConfig = field(default_factory=DLRMConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Workers may have another working directory; URLs stay as they are."""
    folder = replace(config.checkpoint, folder=_absolute(config.checkpoint.folder))
    return replace(config, run_dir=_absolute(config.run_dir), init_from=_absolute(config.init_from), checkpoint=folder)


def _absolute(path: str) -> str:
    return path if not path or "://" in path else str(Path(path).absolute())


def from_json(text: str) -> TrainConfig:
    """Of what `to_json` wrote. Raises ValueError where that was another version of this package."""
    return _built(TrainConfig, json.loads(text))


def _built(kind: Any, values: dict[str, Any]) -> Any:
    hints, fields = get_type_hints(kind), {field.name for field in dataclasses.fields(kind)}
    if fields != values.keys():
        raise ValueError(
            f"{kind.__name__} of another version of this package: it has {sorted(fields ^ values.keys())} or lacks them"
        )
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    """JSON knows neither tuples nor which of several dataclasses a part was: that one which has its fields."""
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    kinds = [kind for kind in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(kind)]
    fits = [kind for kind in kinds if {field.name for field in dataclasses.fields(kind)} == value.keys()]
    return _built(fits[0] if fits else kinds[0], value) if kinds else value


def to_json(config: TrainConfig | PrepareConfig) -> str:
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
