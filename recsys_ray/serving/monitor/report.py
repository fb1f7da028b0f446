"""The monitoring report: one page that needs no other file, with the alarms first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from recsys_ray.reporting.figures import calibration_figure
from recsys_ray.reporting.html import (
    LargeNumber,
    formatted,
    html_numbers,
    html_page,
    html_pair,
    html_picture,
    html_quiet,
    html_section,
    html_table,
    readable,
)
from recsys_ray.serving.monitor.answers.calibration import Quality
from recsys_ray.serving.monitor.answers.recommended import RecommendedItems
from recsys_ray.serving.monitor.drift.drift import Drift
from recsys_ray.serving.monitor.figures import popularity_figure, psi_figure, shift_figure
from recsys_ray.serving.monitor.inspection import Inspection, Traffic

SHIFTS = 6
"""Features whose bins are drawn, those with the largest PSI for their limit."""
PSI_MEANING = (
    "PSI compares the shares of rows by bin; 0 is no difference. A limit is the threshold on top of what chance explains, so it "
    "is larger where there are few requests."
)


def write_monitoring_report(path: Path, inspection: Inspection) -> None:
    """Writes the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    title = f"Requests from {inspection.traffic.first:%Y-%m-%d %H:%M} to {inspection.traffic.last:%Y-%m-%d %H:%M} UTC"
    partial.write_text(html_page(title, _sections(inspection), "monitoring report"), encoding="utf-8")
    partial.replace(path)


def _sections(found: Inspection) -> Iterator[str]:
    yield html_numbers(_numbers(found))
    rows = [(alarm.about, alarm.text) for alarm in found.alarms]
    yield html_section("Alarms", html_table(("", ""), rows) if rows else html_quiet("No figure has passed its threshold."))
    yield html_section("Features", *_features(found))
    yield html_section("Scores", *_scores(found.scores))
    if found.recommended:
        yield html_section("What is recommended", *_recommended(found.recommended))
    yield html_section("Labels", *_quality(found.quality))
    yield html_section("Requests", _traffic(found.traffic))


def _numbers(found: Inspection) -> Iterator[LargeNumber]:
    traffic, recommended, quality = found.traffic, found.recommended, found.quality
    yield LargeNumber("Alarms", str(len(found.alarms)), "figures past their thresholds")
    yield LargeNumber("Requests", f"{traffic.requests:,}", f"of {traffic.users:,} users")
    yield LargeNumber(
        "p99", f"{traffic.p99_milliseconds:,.1f} ms", f"in the server; median {traffic.median_milliseconds:,.1f} ms"
    )
    if recommended:
        yield LargeNumber("Coverage", f"{recommended.coverage:.1%}", "share of the catalogue that was recommended to anyone")
    if quality and quality.requests:
        yield LargeNumber("Hit rate", f"{quality.hit_rate:.4f}", "requests with a chosen item among those recommended")
    if quality and quality.calibration:
        ratio = quality.calibration[0].predicted / quality.calibration[0].observed if quality.calibration[0].observed else None
        yield LargeNumber("Calibration", formatted(ratio, "{:.3f}"), "positives predicted over positives observed; 1 is right")


def _features(found: Inspection) -> Iterator[str]:
    yield html_quiet(f"Compared with {found.reference}. {PSI_MEANING}")
    caption = "PSI of each feature, and its limit."
    yield html_picture(psi_figure(found.features), caption, "No feature was compared.")
    head = ("feature", "PSI", "limit", "missing", "in reference", "unseen", "in reference")
    yield html_table(head, [_feature_row(drift) for drift in found.features], numbers=range(1, 7))
    if found.not_logged:
        yield html_quiet(f"No request carried {', '.join(found.not_logged)}.")
    shifted = sorted((drift for drift in found.features if drift.stability), key=lambda drift: -drift.psi / drift.limit)
    yield _pairs(html_picture(shift_figure(drift), _shift_caption(drift), "") for drift in shifted[:SHIFTS])


def _feature_row(drift: Drift) -> Sequence[str]:
    rates = {rate.name: (f"{rate.current:.1%}", f"{rate.reference:.1%}") for rate in drift.rates}
    psi = (formatted(drift.psi, "{:.3f}"), formatted(drift.limit, "{:.3f}")) if drift.stability else ("key", "")
    return (drift.name, *psi, *rates.get("missing", ("", "")), *rates.get("unseen", ("", "")))


def _shift_caption(drift: Drift) -> str:
    return f"{drift.name}: PSI {drift.psi:.3f}, limit {drift.limit:.3f}."


def _scores(scores: list[Drift]) -> Iterator[str]:
    if not scores:
        yield html_quiet(
            "Not compared: --baseline names an earlier log with scores of the same kind, --ranker the ranking model."
        )
    yield _pairs(html_picture(shift_figure(drift), _shift_caption(drift), "") for drift in scores)


def _recommended(found: RecommendedItems) -> Iterator[str]:
    caption = "Items by popularity in training rows: their share of the choices there, and of what is recommended."
    facts = {
        "recommend requests": found.requests,
        "without any item": f"{found.empty:.1%}",
        "items in the catalogue": found.items,
        "recommended to anyone": f"{found.distinct:,} ({found.coverage:.1%})",
        "as diverse as so many equally often": round(found.effective),
        "not in the catalogue": f"{found.outside:.1%}",
    }
    table = html_table(("", ""), [(name, readable(value)) for name, value in facts.items()], numbers=(1,))
    yield html_pair(html_picture(popularity_figure(found), caption, ""), table)


def _quality(quality: Quality | None) -> Iterator[str]:
    if quality is None:
        yield html_quiet("None were given: --labels names Parquet of what users did.")
        return
    points = [{"predicted": one.predicted, "observed": one.observed, "rows": one.independent} for one in quality.calibration[1:]]
    caption = f"Items by ranking score, in {len(points)} bins of equally many, ± two standard errors."
    picture = html_picture(calibration_figure(points) if points else None, caption, "No item has both a probability and a label.")
    facts = {
        "labels": quality.labels,
        "of requests in the log": quality.joined,
        "scored items with a label": quality.calibration[0].rows if quality.calibration else 0,
        "predicted rate": formatted(quality.calibration[0].predicted, "{:.4f}") if quality.calibration else "n/a",
        "observed rate": formatted(quality.calibration[0].observed, "{:.4f}") if quality.calibration else "n/a",
        "requests with a choice": quality.requests,
        "hit rate": formatted(quality.hit_rate, "{:.4f}"),
        "recall": formatted(quality.recall, "{:.4f}"),
    }
    yield html_pair(picture, html_table(("", ""), [(name, readable(value)) for name, value in facts.items()], numbers=(1,)))


def _traffic(traffic: Traffic) -> str:
    rows = [*traffic.kinds.items(), *((f"model {name}", count) for name, count in traffic.models.items())]
    return html_table(("", "requests"), [(name, f"{count:,}") for name, count in rows], numbers=(1,))


def _pairs(pictures: Iterable[str]) -> str:
    """Returns pictures two by two."""
    found = list(pictures)
    return "".join(html_pair(left, right) for left, right in zip_longest(found[::2], found[1::2], fillvalue=""))
