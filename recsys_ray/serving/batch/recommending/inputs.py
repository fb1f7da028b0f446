"""The inputs of a job that recommends, opened and checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.sources.column_types import check_columns
from recsys_ray.data.sources.parquet_files import ParquetFiles, find_parquet
from recsys_ray.schema import QUERY_SIDES, Categorical, Column, Dense, Timestamp
from recsys_ray.serving.batch.recommending.batch_recommender import ADDED_BY_RECOMMENDING
from recsys_ray.serving.batch.recommending.seen_items import InteractionColumns
from recsys_ray.serving.batch.settings import BatchConfig, check_free
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.ranker import Ranker
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from recsys_ray.serving.retriever import Retriever


@dataclass(frozen=True, kw_only=True)
class RecommendConfig(BatchConfig):
    """The flags of a job that recommends."""

    retriever: str
    """A finished run of a retrieval model, its `model` folder, or the URL of one."""
    ranker: str = ""
    """A finished run of a ranking model, its `model` folder, or the URL of one; empty: items keep the retrieval model's order."""
    users: str
    """The users: Parquet with the user key and the models' other user columns, raw. A column that is not there is unknown. Each
    row gets a list of its own."""
    interactions: tuple[str, ...] = ()
    """Parquet of interactions, one path or several, with the keys of user and item: what a user has seen is not recommended."""
    dataset: str = ""
    """The dataset directory whose catalogue is recommended; empty: the one that the retrieval model was trained on."""
    candidates: int = 500
    """Items that the retrieval model finds for a user, none of which they have seen."""
    k: int = 10
    """Items to recommend to a user."""
    item_columns: tuple[str, ...] = ()
    """Columns of the catalogue to copy into the output, such as `title`."""
    history: str = ""
    """A list column of the models, which --users lacks, to fill with the items that the user saw last, latest first."""
    history_length: int = 20
    """The most items of --history."""
    show: int = 0
    """Prints the recommendations to this many users."""
    users_per_file: int = 4096
    """About how many users a partition has, which is an output file, and what is done again when a worker is killed."""


@dataclass(frozen=True)
class RecommendInputs:
    """Models and tables that fit together."""

    retriever: Retriever
    ranker: Ranker | None
    dataset: DatasetDirectory
    catalogue: ServedCatalogue
    users: ParquetFiles
    interactions: tuple[ParquetFiles, ...]
    columns: InteractionColumns

    @property
    def user_columns(self) -> tuple[str, ...]:
        """The columns of --users that are needed: the key, and those that a model reads."""
        wanted = dict.fromkeys([self.columns.user.name, *self.model_columns])
        return tuple(name for name in wanted if name in self.users.arrow_schema.names)

    @property
    def model_columns(self) -> dict[str, Categorical | Dense]:
        """The columns of user and context that the models read, by name."""
        schemas = [model.schema for model in (self.ranker, self.retriever) if model is not None]
        return {column.name: column for schema in schemas for column in schema.features_of(*QUERY_SIDES)}


def open_inputs(config: RecommendConfig) -> RecommendInputs:
    """Loads the models and opens the tables. Raises ValueError or FileNotFoundError naming what does not fit, and its flag."""
    if config.k < 1 or config.candidates < config.k:
        raise ValueError(f"--k {config.k}: wants 1 or more, and no more than --candidates {config.candidates}")
    retriever = load_retriever(config.retriever, device=config.device)
    ranker = load_ranker(config.ranker, device=config.device) if config.ranker else None
    dataset = DatasetDirectory.open(config.dataset or retriever.dataset)
    catalogue = ServedCatalogue.load(dataset, retriever.item_key, ranker)
    users, interactions = find_parquet(config.users), tuple(map(find_parquet, config.interactions))
    columns = _interaction_columns(retriever, interactions)
    inputs = RecommendInputs(retriever, ranker, dataset, catalogue, users, interactions, columns)
    _check_tables(config, inputs)
    _check_output_columns(config, inputs)
    _check_history(config, inputs)
    return inputs


def _interaction_columns(retriever: Retriever, interactions: tuple[ParquetFiles, ...]) -> InteractionColumns:
    schema = retriever.schema
    user, item = schema.key("user"), schema.key("item")
    assert user is not None and item is not None
    timed = (
        schema.timestamp is not None
        and bool(interactions)
        and all(schema.timestamp.name in one.arrow_schema.names for one in interactions)
    )
    return InteractionColumns(user, item, schema.timestamp.name if timed and schema.timestamp else "")


def _check_tables(config: RecommendConfig, inputs: RecommendInputs) -> None:
    columns = inputs.columns
    check_columns([columns.user], inputs.users.arrow_schema, f"--users {config.users}")
    for model in (inputs.retriever, inputs.ranker):
        if model is not None:
            there = [column for column in model.schema.features_of(*QUERY_SIDES) if column.name in inputs.user_columns]
            check_columns(there, inputs.users.arrow_schema, f"--users {config.users}")
    wanted: list[Column] = [columns.user, columns.item, *([Timestamp(columns.timestamp)] if columns.timestamp else [])]
    for path, table in zip(config.interactions, inputs.interactions, strict=True):
        check_columns(wanted, table.arrow_schema, f"--interactions {path}")


def _check_output_columns(config: RecommendConfig, inputs: RecommendInputs) -> None:
    known = inputs.catalogue.raw.column_names
    for name in config.item_columns:
        if name not in known:
            raise ValueError(f"--item-columns {name!r} is not a column of the catalogue: {', '.join(known)}")
    check_free([inputs.columns.user.name, inputs.columns.item.name, *config.item_columns], ADDED_BY_RECOMMENDING, "the catalogue")


def _check_history(config: RecommendConfig, inputs: RecommendInputs) -> None:
    """Raises ValueError for a --history that cannot be filled, and prints which columns are unknown for all users."""
    lists = [name for name, column in inputs.model_columns.items() if _lists_items(column, inputs.columns.item)]
    fillable = [name for name in lists if name not in inputs.user_columns]
    if config.history and not (config.history in fillable and config.interactions):
        raise ValueError(
            f"--history {config.history!r}: wants --interactions, and a list of items that a model reads and --users lacks "
            f"({', '.join(fillable) or 'there is none'})"
        )
    lacking = [name for name in inputs.model_columns if name not in (*inputs.user_columns, config.history)]
    if lacking:
        hint = f" (--history {fillable[0]} fills it from --interactions)" if fillable and not config.history else ""
        print(f"recommend: {', '.join(lacking)}: not in --users, so unknown for every user{hint}", flush=True)


def _lists_items(column: Categorical | Dense, item: Categorical) -> bool:
    return isinstance(column, Categorical) and column.multi and column.dtype == item.dtype
