"""Real Criteo rows, with nulls: none is rejected. They lie outside the project, whose licence does not cover them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys_ray.config import PrepareConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import criteo

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "criteo-sample" / "criteo_80k.parquet"


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"the Criteo sample is not at {SAMPLE}")
def test_no_row_is_rejected(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(criteo.criteo_schema("int", num_embeddings=1 << 16).to_json())
    config = PrepareConfig(parquet=str(SAMPLE), schema=str(tmp_path / "schema.json"), out=str(tmp_path / "dataset"))
    summary = prepare(config).summary
    raw = pq.read_table(SAMPLE)
    assert summary["rejected"] == 0 and summary["rows_in"] == sum(summary["rows"].values()) == 80_000
    for name, found in summary["columns"].items():
        assert found["missing_rate"] == pytest.approx(raw[name].null_count / 80_000), name
    assert 0.9 < summary["columns"]["c1"]["cardinality"] / raw["c1"].drop_null().unique().__len__() < 1.1
