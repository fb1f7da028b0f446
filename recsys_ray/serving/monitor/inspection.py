"""All that monitoring finds in a request log, and the alarms that follow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue, load_vocabularies
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.serving.monitor.alarms import Alarm, Thresholds
from recsys_ray.serving.monitor.answers.answers import Answers, read_answers
from recsys_ray.serving.monitor.answers.calibration import Quality, measure_quality, quality_alarms
from recsys_ray.serving.monitor.answers.labels import join_labels
from recsys_ray.serving.monitor.answers.recommended import RecommendedItems, describe_recommended, recommended_alarms
from recsys_ray.serving.monitor.drift.drift import Drift, ScoreSample, drift_alarms, feature_drifts, score_drift, score_samples
from recsys_ray.serving.monitor.drift.reference import Reference, read_reference, reference_scores
from recsys_ray.serving.monitor.drift.served_features import ServedFeatures
from recsys_ray.serving.monitor.request_log.log_reader import read_log

log = logging.getLogger(__name__)
RANKED = "rank: ranking score"


@dataclass(frozen=True)
class WatchConfig:
    """The log that is inspected, and all that it is compared with."""

    log: str
    """The folder of the request log."""
    data: str
    """The dataset directory that the served models were trained on."""
    labels: str = ""
    """Parquet of what users did: item key, label (unless every row is a choice), and request_id, or user key and time."""
    window_hours: float = 24.0
    """With labels that have no request_id: how long after a request a choice belongs to it."""
    ranker: str = ""
    """The run or bundle of the ranking model: its scores of held-out rows are compared with those of rank requests."""
    baseline: str = ""
    """An earlier request log, such as the model's first day: its scores are compared with those of all requests."""
    since: str = ""
    """Only requests answered from this time on, such as 2026-11-30 or 2026-11-30T06:00 (UTC)."""
    until: str = ""
    """Only requests answered before this time."""
    threshold: Thresholds = field(default_factory=Thresholds)


@dataclass(frozen=True)
class Traffic:
    """The number of requests, by kind and by model, and how long they took."""

    requests: int
    users: int
    """Different users; a request without a user counts as another one."""
    kinds: dict[str, int]
    models: dict[str, int]
    """Versions of retrieval and ranking model -> requests that they answered."""
    first: datetime
    last: datetime
    median_milliseconds: float
    p99_milliseconds: float


@dataclass(frozen=True)
class Inspection:
    """The figures of a report."""

    traffic: Traffic
    reference: str
    """What features are compared with, in words."""
    features: list[Drift]
    not_logged: list[str]
    """Features of the dataset that no request carried."""
    scores: list[Drift]
    recommended: RecommendedItems | None
    """None without recommend requests, or where the dataset has no item key."""
    quality: Quality | None
    """None without labels."""
    alarms: list[Alarm]


def inspect_log(config: WatchConfig) -> Inspection:
    """Reads the log once and compares it. Raises ValueError or FileNotFoundError naming the flag whose value cannot be used."""
    dataset, limits = DatasetDirectory.open(config.data), config.threshold
    schema, chance = dataset.schema, limits.chance(len(dataset.schema.features))
    reference = read_reference(dataset)
    log.info("reference: %s independent rows of %s", f"{reference.independent:,.0f}", " and ".join(reference.splits))
    served = ServedFeatures(schema, build_lookups(load_vocabularies(dataset.root, schema)), reference.bins)
    answers = _answers(config, served)
    log.info("log: %s requests", f"{answers.requests.num_rows:,}")
    features = feature_drifts(reference, served, limits)
    before = _score_reference(config, dataset, reference)
    now = score_samples(answers)
    scores = [score_drift(name, before[name], now[name], threshold=limits.psi, chance=chance) for name in now if name in before]
    item = schema.key("item")
    recommended = describe_recommended(answers, load_catalogue(dataset), item, chance) if item else None
    outcomes = join_labels(config.labels, schema, answers, config.window_hours * 3600) if config.labels else None
    quality = measure_quality(outcomes, chance) if outcomes else None
    return Inspection(
        traffic=_traffic(answers.requests),
        reference=f"{reference.independent:,.0f} independent rows of the {' and '.join(reference.splits)} split",
        features=features,
        not_logged=[column.name for column in schema.features if column.name not in {drift.name for drift in features}],
        scores=scores,
        recommended=recommended,
        quality=quality,
        alarms=[*_alarms([*features, *scores], recommended, quality, limits)],
    )


def _answers(config: WatchConfig, served: ServedFeatures) -> Answers:
    since, until = _seconds(config.since, "--since", -np.inf), _seconds(config.until, "--until", np.inf)
    return read_answers(read_log(Path(config.log), since, until), served.add)


def _score_reference(config: WatchConfig, dataset: DatasetDirectory, reference: Reference) -> dict[str, ScoreSample]:
    """Returns earlier scores by the names of `score_samples`: those of the baseline, else those of the ranking model."""
    found: dict[str, ScoreSample] = {}
    if config.ranker:
        # Not at the top: TorchRec takes seconds to import, which an inspection without a model should not pay.
        from recsys_ray.serving.bundle import load_ranker

        scores = reference_scores(dataset, load_ranker(config.ranker), reference.splits)
        found[RANKED] = ScoreSample(scores, np.ones(len(scores)), reference.independent)
    if config.baseline:
        found |= score_samples(read_answers(read_log(Path(config.baseline), -np.inf, np.inf)))
    return found


def _alarms(
    drifts: list[Drift], recommended: RecommendedItems | None, quality: Quality | None, limits: Thresholds
) -> Iterator[Alarm]:
    yield from drift_alarms(drifts, limits.psi)
    if recommended:
        yield from recommended_alarms(recommended, limits)
    if quality:
        yield from quality_alarms(quality, limits)


def _traffic(requests: pa.Table) -> Traffic:
    versions = zip(*(requests[name].to_pylist() for name in ("retriever_version", "ranker_version")), strict=True)
    times = pc.min_max(requests["time"]).as_py()
    median, p99 = np.quantile(requests["milliseconds"].to_numpy(), [0.5, 0.99])
    return Traffic(
        requests=requests.num_rows,
        users=len(pc.unique(requests["cluster"])),
        kinds=dict(Counter(requests["kind"].to_pylist())),
        models=dict(Counter(" and ".join(filter(None, pair)) or "unknown" for pair in versions)),
        first=times["min"],
        last=times["max"],
        median_milliseconds=float(median),
        p99_milliseconds=float(p99),
    )


def _seconds(text: str, flag: str, default: float) -> float:
    """Returns a time as seconds since 1970, UTC unless it says otherwise."""
    if not text:
        return default
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text} is no time: write it like 2026-11-30 or 2026-11-30T06:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
