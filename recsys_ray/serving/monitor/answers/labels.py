"""Labels that come back, joined to the answers that they belong to.

Labels are Parquet, a file or a folder, with the schema's item key and, if the schema has one, its label column; without it
every row is a positive choice. A column request_id joins a row to a request. Without it the user key and the time of the row join
it to the latest request of the user, at most `window` earlier, that showed the item, or else to the latest one of any kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from recsys_ray.data.transform import as_seconds, canonical_ids, label_values
from recsys_ray.schema import Categorical, Schema
from recsys_ray.serving.monitor.answers.answers import Answers, clusters_of

REQUEST_ID = "request_id"
PAIR = ["request", "key"]


@dataclass(frozen=True)
class Outcomes:
    """Answers with the labels that came back for them."""

    labels: int
    """Rows of the labels."""
    joined: int
    """Rows that belong to a request of the log."""
    scored: pd.DataFrame
    """Items with a ranking score and a label: `score`, `label` (0 or 1), and `cluster`, the user."""
    lists: pd.DataFrame
    """Recommend requests with a positive label: `items` shown, `relevant` items chosen, `hits` among both, and `cluster`."""


def join_labels(path: str, schema: Schema, answers: Answers, window: float) -> Outcomes:
    """Joins the labels at `path` to answers; `window` is in seconds.

    Raises FileNotFoundError where there are none, and ValueError naming a column that they lack.

    Where all labels are positive, a recommended item that was not chosen within the window counts as negative, unless the window
    reaches beyond the newest label.
    """
    try:
        source = pyarrow.dataset.dataset(path, format="parquet")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--labels {path}: there is no such file or folder") from error
    labels, requests, shown = _labels(source, schema, path), _requests(answers), _shown(answers)
    found = labels.assign(request=_request_of(labels, requests, shown, window))
    found = found.dropna(subset=["request"]).astype({"request": np.int64})
    outcome = found.groupby(PAIR, as_index=False)["label"].max()
    lists = _lists(outcome[outcome["label"] > 0], requests, shown)
    if not _label_columns(source, schema):
        newest = labels["time"].max() - window if "time" in labels else np.inf
        asked = requests.index[(requests["kind"] == "recommend") & (requests["time"] <= newest)]
        pairs = shown[shown["request"].isin(asked)].merge(outcome, on=PAIR, how="left").fillna({"label": 0.0})
    else:
        pairs = shown.merge(outcome, on=PAIR)
    scored = pairs.dropna(subset=["score"])
    scored = scored.assign(cluster=requests["cluster"].to_numpy()[scored["request"]])
    return Outcomes(len(labels), len(found), scored[["score", "label", "cluster"]], lists)


def _label_columns(source: pyarrow.dataset.Dataset, schema: Schema) -> list[str]:
    return [schema.label.name] if schema.label and schema.label.name in source.schema.names else []


def _labels(source: pyarrow.dataset.Dataset, schema: Schema, path: str) -> pd.DataFrame:
    """Reads key and label of each row, with request_id, or user and time."""
    item, user = schema.key("item"), schema.key("user")
    if item is None or user is None:
        raise ValueError(f'--labels {path}: the schema lacks a user or an item key ("key": true), which join labels to answers')
    names, label = source.schema.names, _label_columns(source, schema)
    time = schema.timestamp.name if schema.timestamp else "timestamp"
    by_request = REQUEST_ID in names
    wanted = [item.name] if by_request else [item.name, user.name, time]
    if lacking := [name for name in wanted if name not in names]:
        instead = "" if by_request else f", or {REQUEST_ID} instead of user and time"
        raise ValueError(f"--labels {path} lacks column {', '.join(lacking)}: wants {', '.join(wanted)}{instead}")
    rows = source.to_table(columns=[*wanted, *label, *([REQUEST_ID] if by_request else [])]).drop_null()
    columns = {"key": _ids(item, rows[item.name]), "label": np.ones(rows.num_rows)}
    if schema.label and label:
        columns["label"] = label_values(schema.label, rows[schema.label.name].combine_chunks())
    if by_request:
        columns[REQUEST_ID] = rows[REQUEST_ID].cast(pa.string()).to_numpy(zero_copy_only=False)
        return pd.DataFrame(columns)
    columns["cluster"] = clusters_of(canonical_ids(user, rows[user.name].combine_chunks()))
    columns["time"] = as_seconds(rows[time].combine_chunks()).to_numpy()
    return pd.DataFrame(columns).sort_values("time", kind="stable", ignore_index=True)


def _ids(column: Categorical, values: pa.ChunkedArray) -> np.ndarray:
    return canonical_ids(column, values.combine_chunks()).to_numpy(zero_copy_only=False)


def _requests(answers: Answers) -> pd.DataFrame:
    """Returns the requests by position. Times are whole seconds, as those of labels are."""
    seconds = answers.requests["time"].cast(pa.timestamp("s", "UTC"), safe=False).cast(pa.int64()).to_numpy()
    return answers.requests.select(["kind", REQUEST_ID, "cluster"]).to_pandas().assign(time=seconds)


def _shown(answers: Answers) -> pd.DataFrame:
    known = answers.shown.filter(pc.field("key").is_valid())
    scores = known["ranking_score"].cast(pa.float64())
    columns = {"request": known["request"], "key": known["key"], "score": scores}
    frame = pd.DataFrame({name: values.to_numpy() for name, values in columns.items()})
    return frame.drop_duplicates(PAIR)


def _request_of(labels: pd.DataFrame, requests: pd.DataFrame, shown: pd.DataFrame, window: float) -> np.ndarray:
    """Returns the position of the request that each label belongs to, float64; NaN where there is none."""
    if REQUEST_ID in labels:
        positions = pd.Series(np.arange(len(requests)), index=requests[REQUEST_ID])
        return labels[REQUEST_ID].map(positions[~positions.index.duplicated(keep="last")]).to_numpy(np.float64)
    asked = requests.assign(request=np.arange(len(requests)))[["time", "cluster", "request"]]
    pairs = shown[PAIR].merge(asked, on="request")
    latest = [
        pd.merge_asof(labels, frame.sort_values("time", kind="stable"), on="time", by=by, tolerance=round(window))["request"]
        for frame, by in ((pairs, ["cluster", "key"]), (asked, ["cluster"]))
    ]
    return latest[0].fillna(latest[1]).to_numpy(np.float64)


def _lists(chosen: pd.DataFrame, requests: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """Counts for each recommend request what was shown, what was chosen, and both."""
    kinds = requests["kind"].to_numpy()
    chosen = chosen[kinds[chosen["request"]] == "recommend"]
    frame = pd.DataFrame({"relevant": chosen.groupby("request").size()})
    frame["items"] = shown.groupby("request").size().reindex(frame.index, fill_value=0)
    frame["hits"] = chosen.merge(shown, on=PAIR).groupby("request").size().reindex(frame.index, fill_value=0)
    return frame.assign(cluster=requests["cluster"].to_numpy()[frame.index])
