"""The decision to promote: candidate and champion are measured on the same test rows, and only a better candidate wins.

Without a champion the candidate has to beat a trivial model: the base rate for a ranking model, popularity for a retrieval model.
What was decided and why is written to the candidate's version: as tags, and as the second paragraph of its description.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.reporting.registry.names import CANDIDATE_ALIAS, CHAMPION_ALIAS
from recsys_ray.reporting.registry.versions import RegisteredVersion, annotate, move_alias, version_at
from recsys_ray.reporting.summary import metric_label
from recsys_ray.serving.bundle import Ranker, Retriever, load_bundle
from recsys_ray.serving.promotion.bootstrap import MetricComparison, paired_bootstrap
from recsys_ray.serving.promotion.measurement import Measurement
from recsys_ray.serving.promotion.ranking import ScoredRows, score_rows
from recsys_ray.serving.promotion.retrieval import RankedUsers, rank_users

RANKING_METRICS = ("auc", "ne", "logloss")
DEFAULT_CUTOFF = 10


@dataclass(frozen=True)
class PromotionRule:
    """The rule by which a candidate is better."""

    metric: str = ""
    """Empty: the metric by which training chose its best epoch, ne for a DLRM and ndcg_at_k for a Two Tower."""
    confidence: float = 0.95
    """The interval of the difference that must lie on the candidate's side of 0."""
    draws: int = 1000
    """Samples of the bootstrap."""


@dataclass(frozen=True)
class Decision:
    """The result of a comparison, and the reason in words."""

    promoted: bool
    reason: str
    tags: dict[str, str]
    lines: tuple[str, ...]
    """A table of all metrics."""


def promote(name: str, dataset: DatasetDirectory, rule: PromotionRule) -> Decision:
    """Moves the alias `champion` of a registered model to its candidate if that is better on the test split of `dataset`.

    Raises FileNotFoundError without a candidate, ValueError where the two models cannot be compared on this dataset.
    """
    candidate, champion = version_at(name, CANDIDATE_ALIAS), version_at(name, CHAMPION_ALIAS)
    if candidate is None:
        raise FileNotFoundError(f"no version of {name} has the alias {CANDIDATE_ALIAS}: register one with jobs/register.py")
    if champion is not None and champion.number == candidate.number:
        return Decision(True, f"version {candidate.number} is the champion already", {}, ())
    decision = decide(candidate, champion, dataset, rule)
    annotate(candidate, decision.reason, decision.tags)
    if decision.promoted:
        move_alias(CHAMPION_ALIAS, candidate)
    return decision


def decide(
    candidate: RegisteredVersion, champion: RegisteredVersion | None, dataset: DatasetDirectory, rule: PromotionRule
) -> Decision:
    """Measures both versions, one after the other, and compares them."""
    model = load_bundle(candidate.uri)
    print(f"scoring {candidate.name} version {candidate.number} on the test split of {dataset.root}", flush=True)
    metric = checked_metric(rule.metric or model.task.objective, model)
    found = scored(model, dataset, metric)
    del model  # one model at a time is in memory
    if champion is None:
        rival, rival_name = found.constant(), "the base rate" if isinstance(found, ScoredRows) else "popularity"
    else:
        rival, rival_name = _measured_like(found, champion, dataset, metric), f"champion version {champion.number}"
    ours = found.measurement()
    if not math.isfinite(ours.metrics()[metric]):
        raise ValueError(f"{metric} is not defined on the test split of {dataset.root}, whose labels are all alike")
    compared = paired_bootstrap(ours, rival, draws=rule.draws, confidence=rule.confidence)
    deciding = next(one for one in compared if one.metric == metric)
    return Decision(
        deciding.candidate_is_better,
        reason_text(deciding, ours, rule, candidate=candidate.number, rival=rival_name, dataset=dataset),
        _tags(deciding, ours, rival_name, dataset),
        tuple(table_of(compared, rival_name, rule.confidence)),
    )


def scored(model: Ranker | Retriever, dataset: DatasetDirectory, metric: str) -> ScoredRows | RankedUsers:
    """Returns what a model makes of the test split."""
    return score_rows(model, dataset) if isinstance(model, Ranker) else rank_users(model, dataset, cutoff_of(metric))


def _measured_like(
    ours: ScoredRows | RankedUsers, champion: RegisteredVersion, dataset: DatasetDirectory, metric: str
) -> Measurement:
    print(f"scoring {champion.name} version {champion.number} on the same rows", flush=True)
    theirs = scored(load_bundle(champion.uri), dataset, metric)
    if type(theirs) is not type(ours):
        raise ValueError(
            f"{champion.name}: the candidate and champion version {champion.number} are models of different kinds, of which one "
            "ranks and one retrieves: register them under different names"
        )
    return theirs.measurement()


def checked_metric(metric: str, model: Ranker | Retriever) -> str:
    """Returns the metric. Raises ValueError for one that this kind of model is not measured by."""
    k = cutoff_of(metric)
    known = RANKING_METRICS if isinstance(model, Ranker) else (f"recall_at_{k}", f"ndcg_at_{k}", f"hit_rate_at_{k}", "mrr")
    if metric not in known:
        raise ValueError(f"--metric {metric}: a {model.manifest.model} is measured by {', '.join(known)}")
    return metric


def cutoff_of(metric: str) -> int:
    """Returns the k of a metric such as ndcg_at_10; DEFAULT_CUTOFF for one without."""
    k = metric.rpartition("_at_")[2]
    return int(k) if k.isdigit() and int(k) else DEFAULT_CUTOFF


def reason_text(
    found: MetricComparison, ours: Measurement, rule: PromotionRule, *, candidate: str, rival: str, dataset: DatasetDirectory
) -> str:
    """Returns the decision and its reason as two sentences."""
    verdict = "is the new champion" if found.candidate_is_better else "is not promoted"
    return (
        f"Version {candidate} {verdict}: {metric_label(found.metric)} {found.candidate:.5f} against {found.rival:.5f} of "
        f"{rival}, difference {found.difference:+.5f}, {rule.confidence:.0%} interval {found.low:+.5f} to {found.high:+.5f} "
        f"by paired bootstrap over {ours.units:,} {ours.unit}. Measured on {ours.rows:,} test rows of {dataset.root} "
        f"({dataset.summary['fingerprint']})."
    )


def _tags(found: MetricComparison, ours: Measurement, rival: str, dataset: DatasetDirectory) -> dict[str, str]:
    values = {
        "decision": "promoted" if found.candidate_is_better else "not promoted",
        "metric": found.metric,
        "candidate": f"{found.candidate:.6g}",
        "against": rival,
        "rival": f"{found.rival:.6g}",
        "difference": f"{found.difference:.6g}",
        "interval": f"{found.low:.6g} to {found.high:.6g}",
        "rows": str(ours.rows),
        ours.unit if ours.unit != "rows" else "units": str(ours.units),
        "dataset": dataset.summary["fingerprint"],
    }
    return {f"promotion.{key}": value for key, value in values.items()}


def table_of(compared: list[MetricComparison], rival: str, confidence: float) -> Iterator[str]:
    """Yields a table of all metrics, a line each."""
    width = max(12, len(rival) + 3)
    yield f"{'metric':<12}{'candidate':>12}{rival:>{width}}{'difference':>13}   {confidence:.0%} interval"
    for one in compared:
        line = f"{metric_label(one.metric):<12}{one.candidate:>12.5f}{one.rival:>{width}.5f}{one.difference:>+13.5f}"
        yield f"{line}   {one.low:+.5f} to {one.high:+.5f}"
