"""Tests report.html: numbers and pictures, names shown as they are, runs that lack something, and the layout in a browser."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_ray.reporting import figures as figures
from recsys_ray.reporting.figure_style import as_data_url, shortened
from recsys_ray.reporting.points import best_point, mib_by_table, moving_average
from recsys_ray.reporting.report import SHARDS_UNFOLDED, write_report
from recsys_ray.reporting.run_record import RunRecord

NASTY = "<b>x</b>"


def shard(table: str, rank: int = 0, mib: float = 1.0) -> dict[str, Any]:
    return {"table": table, "rows": 16384, "dim": 16, "mib": mib, "sharding": "table_wise", "kernel": "fused", "rank": rank}


def record(**changes: Any) -> RunRecord:
    points = [
        {"step": 20 * i, "loss": 0.7 - 0.001 * i, "rows_per_second": 6e4, "data_wait_share": 0.02, "learning_rate": 1e-3}
        for i in range(1, 51)
    ]
    epochs = [{"step": 500 * i, "epoch": i, "auc": 0.7 + 0.01 * i, "ne": 0.9, "logloss": 0.6, "calibration": 1.0} for i in (1, 2)]
    whole = RunRecord(
        outcome={"test_auc": 0.79123, "test_ne": 0.81234, "rows_per_second": 68123.4, "world_size": 2, "tracking_run_id": "f00d"},
        loss_name="log loss",
        objective="ne",
        lower_is_better=True,
        training=points,
        validation=epochs,
        calibration_curve=[{"predicted": i / 20, "observed": i / 21, "rows": 5000} for i in range(20)],
        comparison=[],
        plan=[shard("user"), shard("item", rank=1), shard(NASTY, rank=1)],
        seconds={"setup": 10.0, "data": 5.0, "step": 80.0, "evaluation": 5.0},
        config={"model": {"name": NASTY}},
        dataset={
            "rows_in": 1_000_209,
            "rows": {"train": 800_000, "validation": 100_000, "test": 100_000},
            "rejected": 209,
            "rejected_reasons": {"label is missing": 209},
            "fingerprint": "abc123",
        },
    )
    return dataclasses.replace(whole, **changes)


def retrieval_metrics(recall: float, users: int, **others: float) -> dict[str, float]:
    at = {f"{name}_at_{k}": recall for k in (10, 20, 100) for name in ("recall", "ndcg", "hit_rate")}
    return {**at, "mrr": recall / 2, "users": float(users), **others}


def two_tower_record() -> RunRecord:
    """A Two Tower's run with rivals and seven groups of users; its recall goes on rising after its NDCG has peaked."""
    coverage = {f"coverage_at_{k}": 0.1 for k in (10, 20, 100)}
    groups = ("K-12 student", "college/grad student", "executive/managerial", "technician", "writer", "self-employed", NASTY)
    comparison = [
        {"name": "Two Tower", "metrics": retrieval_metrics(0.21234, 6040, **coverage)},
        *({"name": f"Two Tower, occupation {group}", "metrics": retrieval_metrics(0.19, 1074)} for group in groups),
        *({"name": name, "metrics": retrieval_metrics(0.11, 6040, **coverage)} for name in ("popularity", "iALS")),
    ]
    epochs = [
        {"step": 500 * i, "epoch": i, **retrieval_metrics(0.1 * i, 6040), "ndcg_at_10": ndcg}
        for i, ndcg in enumerate((0.1, 0.3, 0.2), start=1)
    ]
    return record(
        outcome={"headline": ["recall_at_10", "ndcg_at_10", "mrr"], "comparison": comparison, "test_recall_at_10": 0.21234},
        loss_name="softmax loss",
        objective="ndcg_at_10",
        lower_is_better=False,
        validation=epochs,
        comparison=comparison,
        calibration_curve=[],
    )


class Balance(HTMLParser):
    """A parser that fails on a closing tag which does not close the tag last opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(tmp_path: Path, run: RunRecord) -> str:
    path = write_report(tmp_path, run)
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    return text


def pictures(text: str) -> list[str]:
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    return [base64.b64decode(data).decode() for data in found]


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("whole")
    text = page(folder, record())
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return text


@pytest.mark.unit
def test_all_pictures_and_nothing_from_outside(whole_page: str) -> None:
    assert len(pictures(whole_page)) == whole_page.count("<img") == 6
    assert all("<svg" in picture and "</svg>" in picture for picture in pictures(whole_page))
    assert "<script" not in whole_page
    assert not re.search(r'(?:src|href)="(?!data:)', whole_page)


@pytest.mark.unit
def test_numbers(whole_page: str) -> None:
    for number in ("0.7912", "0.8123", "68,123", "1,000,209", "800,000", "f00d", "abc123", "label is missing"):
        assert number in whole_page
    assert "He et al. 2014" in whole_page
    assert "3 tables in 3 shards, 3.0 MiB" in whole_page
    assert "20 bins of 5,000 rows" in whole_page


@pytest.mark.unit
def test_names_are_escaped(tmp_path: Path) -> None:
    reasons = {"rows": {"train": 1}, "rejected_reasons": {"<i>y</i>": 1}}
    text = page(tmp_path, record(outcome={"launcher": "<u>z</u>"}, dataset=reasons))
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "&lt;i&gt;y&lt;/i&gt;" in text and "&lt;u&gt;z&lt;/u&gt;" in text
    assert not any(tag in text for tag in (NASTY, "<i>", "<u>"))


def test_without_validation_or_test(tmp_path: Path) -> None:
    text = page(tmp_path, record(validation=[], calibration_curve=[]))
    assert len(pictures(text)) == 4
    assert "No validation was run." in text and "No test rows were scored." in text


def test_one_validation_and_one_step(tmp_path: Path) -> None:
    whole = record()
    assert len(pictures(page(tmp_path, record(training=whole.training[:1], validation=whole.validation[:1])))) == 6


def test_retrieval_is_compared_with_its_rivals_instead_of_calibrated(tmp_path: Path) -> None:
    text = page(tmp_path, two_tower_record())
    assert len(pictures(text)) == 6
    assert "Validation recall@10" in text and "recall@10 on test, compared" in text and "Calibration" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text and NASTY not in text
    assert "headline" not in text


def test_comparison_has_a_table_for_each_k(tmp_path: Path) -> None:
    text = page(tmp_path, two_tower_record())
    tables = re.findall(r"<table><caption>(.*?)</caption><tr>(.*?)</tr>(.*?)</table>", text)
    assert [title for title, _, _ in tables] == ["Top 10", "Top 20", "Top 100", "Over all ranks"]
    heads = [re.findall(r"<th[^>]*>(.*?)</th>", head) for _, head, _ in tables]
    assert heads == [["", "recall", "NDCG", "hit rate", "coverage"]] * 3 + [["", "MRR", "users"]]
    assert all(body.count("<tr>") == 10 for _, _, body in tables)
    assert '<td class="number">0.2123</td>' in tables[0][2] and '<td class="number">1,074</td>' in tables[3][2]


def test_the_loss_has_its_own_name(tmp_path: Path) -> None:
    softmax = page(tmp_path, two_tower_record())
    assert "Mean softmax loss of the batches trained on, by step." in softmax and "log loss" not in softmax
    assert "Mean log loss of the batches trained on, and of the whole validation split, by step." in page(tmp_path, record())
    figure = figures.loss_figure(record().training, record().validation, "log loss")
    assert figure is not None and figure.axes[0].get_ylabel() == "log loss" and len(figure.axes[0].lines) == 3


def test_the_epoch_that_the_objective_chose_is_marked(tmp_path: Path) -> None:
    run = two_tower_record()
    best = best_point(run.validation, run.objective, run.lower_is_better)
    assert best == 1, "NDCG peaks in the second of three epochs, recall in the third"
    figure = figures.metric_figure(run.validation, "recall_at_10", best)
    assert figure is not None and [text.get_text() for text in figure.axes[0].texts] == ["0.2000"]
    assert "Marked is the epoch with the best NDCG@10" in page(tmp_path, run)
    scores = [{"ne": value} for value in (0.9, math.nan, 0.8, 0.8, None)]
    assert best_point(scores, "ne", lower_is_better=True) == 2 and best_point(scores, "ne", lower_is_better=False) == 0
    assert best_point(scores, "auc", lower_is_better=False) is None


LAYOUT = """
<script>
const broken = [];
for (const cell of document.querySelectorAll("td, th, caption")) {
  const nodes = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  for (let node; (node = nodes.nextNode()); ) {
    for (const word of node.data.matchAll(cell.className == "number" ? /\\S+/g : /[^\\s/-]+/g)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) broken.push(word[0]);
    }
  }
}
const boxes = [document.documentElement, ...document.querySelectorAll(".scroll")];
const found = {broken, scrolling: boxes.filter(box => box.scrollWidth > box.clientWidth).length, width: innerWidth};
document.body.textContent = "layout " + JSON.stringify(found) + " end";
</script>
"""


@pytest.mark.parametrize("width", [1100, 700])
def test_tables_fit_a_screen_and_break_no_number(tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("laying out a page needs Chromium, and there is none here")
    laid_out = tmp_path / "laid_out.html"
    laid_out.write_text(page(tmp_path, two_tower_record()).replace("</body>", LAYOUT + "</body>"))
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
    )
    dump = subprocess.run([browser, *options, "--dump-dom", str(laid_out)], capture_output=True, text=True, timeout=120)
    measured = re.search(r"layout (\{.*?\}) end", html.unescape(dump.stdout))
    assert measured, dump.stderr
    assert json.loads(measured[1]) == {"broken": [], "scrolling": 0, "width": width}


def empty(**changes: Any) -> RunRecord:
    """Returns the record of a run of which nothing is known, but for the changes."""
    lists = ("training", "validation", "calibration_curve", "comparison", "plan")
    dicts = ("outcome", "seconds", "config", "dataset")
    return record(**({key: [] for key in lists} | {key: {} for key in dicts} | changes))


@pytest.mark.unit
def test_of_nothing_at_all(tmp_path: Path) -> None:
    text = page(tmp_path, empty())
    assert pictures(text) == []
    assert "No table was sharded." in text and "Nothing is known of the dataset." in text


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    whole = record()
    spoilt = [dict.fromkeys(point, bad) | {"step": point["step"]} for point in whole.training[:3]] + whole.training[3:]
    validation = [whole.validation[0] | {"auc": bad, "logloss": bad}, whole.validation[1]]
    outcome = {"test_auc": bad, "test_ne": None, "world_size": 1}
    text = page(tmp_path, record(training=spoilt, validation=validation, outcome=outcome, seconds={"step": bad, "data": 1.0}))
    assert len(pictures(text)) == 6
    assert text.count("<b>n/a</b>") == 2


@pytest.mark.unit
def test_shards_are_folded_when_many(tmp_path: Path) -> None:
    assert "shards</summary>" not in page(tmp_path, empty(plan=[shard(f"t{i}") for i in range(SHARDS_UNFOLDED)]))
    text = page(tmp_path, empty(plan=[shard(f"t{i}", rank=i % 8) for i in range(SHARDS_UNFOLDED + 1)]))
    assert f"All {SHARDS_UNFOLDED + 1} shards</summary>" in text
    assert len(re.findall(r"<td>t\d+</td>", text)) == SHARDS_UNFOLDED + 1


@pytest.mark.unit
def test_replaces_an_older_report(tmp_path: Path) -> None:
    assert "0.5555" not in page(tmp_path, empty(outcome={"test_auc": 0.7912}))
    assert "0.5555" in page(tmp_path, empty(outcome={"test_auc": 0.5555}))


@pytest.mark.unit
def test_small_tables_are_added_up() -> None:
    plan = [shard(f"t{i}", rank=i % 2, mib=100 - i) for i in range(20)] + [shard("t0", rank=1, mib=1)]
    tables = mib_by_table(plan, ranks=2, named=12)
    assert list(tables) == [*(f"t{i}" for i in range(12)), "other (8 tables)"]
    assert tables["t0"].tolist() == [100, 1]
    assert sum(mib.sum() for mib in tables.values()) == sum(row["mib"] for row in plan)


@pytest.mark.unit
def test_names_in_pictures_are_taken_literally() -> None:
    names = ["_hidden", "$cost$", r"$\frac{$", NASTY]
    figure = figures.placement_figure([shard(name) for name in names], world_size=3)
    assert figure is not None
    as_data_url(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == names
    assert figure.axes[0].get_ylim() == pytest.approx((2.6, -0.6)), "ranks without a shard are shown too"


@pytest.mark.unit
def test_long_names_keep_both_ends() -> None:
    short = shortened("user_history_of_categories_level_12")
    assert len(short) == 28 and short.startswith("user_hist") and short.endswith("level_12")
    assert shortened("user_id") == "user_id"


@pytest.mark.unit
def test_moving_average_skips_what_is_not_finite() -> None:
    assert moving_average(np.array([1.0, np.nan, 3.0, 5.0]), 2).tolist() == pytest.approx([1, 2, 4, 4])
    assert np.isnan(moving_average(np.full(3, np.nan), 2)).all()
