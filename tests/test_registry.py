"""The model registry, on real MLflow: a run is registered once, scores alike through MLflow and HTTP, and is promoted or not."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from jobs.promote import NOT_PROMOTED, PromoteJob
from jobs.promote import main as promote_job
from jobs.register import RegisterJob
from jobs.register import main as register_job
from recsys_ray.bundle.reader import open_bundle
from recsys_ray.command_line import JobError
from recsys_ray.config import DataConfig, LaunchConfig, LoopConfig, OptimizerConfig, TrackingConfig, TrainConfig
from recsys_ray.config.serialization import from_json
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.models.registry import model_config
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.reporting.outcome import write_outcome
from recsys_ray.reporting.registry.address import RegistryAddress, connected
from recsys_ray.reporting.registry.names import check_registered_name
from recsys_ray.serving.bundle import load_bundle, load_ranker, load_retriever
from recsys_ray.serving.location import pinned_location
from recsys_ray.serving.promotion.promote import PromotionRule
from recsys_ray.training.finishing.registration import check_registration
from recsys_ray.training.job import launch_training
from recsys_ray.training.train import train
from tests.support.processes import ROOT, free_ports
from tests.support.runs import copied, dlrm_config, outcome
from tests.support.workers import mlflow_uri, run_workers
from tests.test_bundle import raw_rows
from tests.test_retrieval import preparation, raw  # noqa: F401 (a fixture)

RULE = PromotionRule(draws=200)


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's database and two runs: `good`, and `weak`, which has hardly been trained."""
    folder = tmp_path_factory.mktemp("registry")
    for name, loop in (("good", {"epochs": 1}), ("weak", {"max_steps": 2})):
        run_workers(train, 1, dlrm_config(dataset, folder / name, **loop))
    return folder


@pytest.fixture(scope="module")
def registry(folder: Path) -> Iterator[str]:
    """The registry's URI, which MLflow uses while the module runs. `clicks` has the version of the good run."""
    uri = mlflow_uri(folder)
    with connected(RegistryAddress(uri)):
        register_job(RegisterJob(str(folder / "good"), "clicks"))
        yield uri


def rows_of(version: str, count: int = 500) -> pa.Table:
    """Raw rows with known, unseen and missing values."""
    return raw_rows(load_bundle(version), count)


def as_json(rows: pa.Table) -> dict[str, Any]:
    """The rows as a request to MLflow's server."""
    return {"dataframe_split": {"columns": rows.column_names, "data": [list(row.values()) for row in rows.to_pylist()]}}


def test_a_run_is_registered_with_all_that_is_known_of_it_and_only_once(registry: str, folder: Path, dataset: Path) -> None:
    client, run_id = MlflowClient(), outcome(folder / "good")["tracking_run_id"]
    version = client.get_model_version_by_alias("clicks", "candidate")
    bundle = load_ranker(folder / "good")
    assert version.run_id == run_id and version.tags["recsys_ray.bundle_version"] == bundle.version
    assert version.tags["metric.test_auc"] == f"{outcome(folder / 'good')['test_auc']:.6g}"
    assert version.description.startswith(f"dlrm, step {bundle.manifest.step} of run {run_id}")

    model = mlflow.models.get_model_info("models:/clicks@candidate")
    assert model.signature.inputs.input_names() == [column.name for column in bundle.schema.features]
    (output,) = model.signature.outputs.inputs
    assert (output.type, output.shape) == (np.float32, (-1,))
    example = mlflow.models.Model.load("models:/clicks@candidate").load_input_example("models:/clicks@candidate")
    assert len(bundle.predict(example)) == len(example) == 3 and example.iloc[-1].isna().all()
    needed = Path(mlflow.pyfunc.get_model_dependencies("models:/clicks@candidate")).read_text().split()
    assert {f"{name}=={number.split('+')[0]}" for name, number in bundle.manifest.packages.items()} <= set(needed)
    assert any(line.startswith("mlflow==") for line in needed)

    (used,) = client.get_run(run_id).inputs.dataset_inputs
    summary = json.loads((dataset / "summary.json").read_text())
    assert used.dataset.digest == summary["fingerprint"] and json.loads(used.dataset.source) == {"uri": str(dataset)}
    assert json.loads(used.dataset.profile)["num_rows"] == sum(summary["rows"].values())
    assert {"name": "label", "type": "any", "required": True} in json.loads(used.dataset.schema)["mlflow_colspec"]
    assert client.get_run(run_id).info.status == "FINISHED"

    register_job(RegisterJob(str(folder / "good"), "clicks"))
    assert [one.version for one in client.search_model_versions("name='clicks'")] == [version.version]


def test_a_batch_job_takes_a_model_by_its_alias(registry: str, folder: Path, tmp_path: Path) -> None:
    rows = rows_of("models:/clicks@candidate", 50)
    pq.write_table(rows, tmp_path / "rows.parquet")
    flags = ["--model=models:/clicks@candidate", f"--rows={tmp_path / 'rows.parquet'}", f"--out={tmp_path / 'out'}"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry, "RAY_ADDRESS": "local"}
    subprocess.run([sys.executable, "jobs/score.py", *flags], cwd=ROOT, env=environment, check=True)
    scored = pq.read_table(tmp_path / "out")
    assert set(scored["model_version"].to_pylist()) == {load_ranker(folder / "good").version}
    np.testing.assert_allclose(scored["score"], load_ranker(folder / "good").predict(rows), atol=1e-6)


def test_mlflow_scores_raw_rows_as_the_ranker_does(registry: str, folder: Path) -> None:
    """One row at a time, and whole numbers for dense columns; online/test_agreement.py has whole tables."""
    ranker, model = load_ranker(folder / "good"), mlflow.pyfunc.load_model("models:/clicks@candidate")
    rows = raw_rows(ranker, 30)
    alone = np.concatenate([model.predict(rows.slice(row, 1).to_pandas()) for row in range(30)])
    np.testing.assert_allclose(alone, ranker.predict(rows), atol=1e-6)
    whole = rows.to_pandas().assign(**{column.name: 1 for column in ranker.schema.dense})
    np.testing.assert_allclose(model.predict(whole), ranker.predict(whole), atol=1e-6)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"missing inputs \['c1'\]"):
        model.predict(rows.drop_columns(["c1"]).to_pandas())


@contextmanager
def served(uri: str, log: Path) -> Iterator[str]:
    """Runs `mlflow models serve` and yields its URL once it answers."""
    (port,) = free_ports(1)
    tools = Path(sys.executable).parent
    command = [str(tools / "mlflow"), "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline and server.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        assert server.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def posted(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.long
def test_mlflow_serves_the_same_scores_over_http(registry: str, folder: Path, tmp_path: Path) -> None:
    rows = rows_of("models:/clicks@candidate", 200)
    expected = load_ranker(folder / "good").predict(rows)
    with served("models:/clicks@candidate", tmp_path / "log") as url:
        found = posted(f"{url}/invocations", as_json(rows))["predictions"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        records = {"dataframe_records": rows.slice(0, 1).to_pylist()}
        np.testing.assert_allclose(posted(f"{url}/invocations", records)["predictions"], expected[:1], atol=1e-6)
        unknown = {"dataframe_records": [dict.fromkeys(rows.column_names)]}
        np.testing.assert_allclose(
            posted(f"{url}/invocations", unknown)["predictions"],
            load_ranker(folder / "good").predict(pd.DataFrame([dict.fromkeys(rows.column_names)])),
            atol=1e-6,
        )


def test_a_registered_bundle_is_loaded_by_alias_version_and_run(registry: str, folder: Path) -> None:
    run_id, expected = outcome(folder / "good")["tracking_run_id"], load_ranker(folder / "good")
    rows = raw_rows(expected, 50)
    of_run = (f"runs:/{run_id}/model", f"runs:/{run_id}", f"runs:/{run_id}/dlrm")
    for uri in ("models:/clicks@candidate", "models:/clicks/1", *of_run):
        found = load_ranker(uri)
        assert found.version == expected.version
        np.testing.assert_array_equal(found.predict(rows), expected.predict(rows))
    with pytest.raises(FileNotFoundError, match="models:/clicks@nobody: no version of clicks has"):
        load_bundle("models:/clicks@nobody")
    assert pinned_location("models:/clicks@candidate") == pinned_location("models:/clicks/1") == "models:/clicks/1"
    assert pinned_location("s3://bucket/run") == "s3://bucket/run" and Path(pinned_location("runs/one")).is_absolute()
    with pytest.raises(FileNotFoundError, match="models:/clicks@nobody: no version of clicks has"):
        pinned_location("models:/clicks@nobody")
    for uri in ("models:/clicks/99", "models:/strangers/1", "runs:/0123456789abcdef0123456789abcdef"):
        with pytest.raises(FileNotFoundError, match=uri):
            load_bundle(uri)


def test_copies_of_bundles_are_told_apart_by_their_manifests_and_made_again_where_a_file_is_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that end with the same weights have one version, and other dates and datasets."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("first", "second"):
        shutil.copytree(folder / "good" / "model", tmp_path / name)
        manifest = dataclasses.replace(open_bundle(tmp_path / name).manifest, created=name)
        (tmp_path / name / "manifest.json").write_text(manifest.to_json())
    for _ in range(3):
        assert [load_bundle(f"file://{tmp_path}/{name}").manifest.created for name in ("first", "second")] == ["first", "second"]
    copies = sorted((tmp_path / f"recsys_ray_bundles_{os.getuid()}").iterdir())
    assert len(copies) == 2 and {one.name.split("_")[0] for one in copies} == {open_bundle(tmp_path / "first").manifest.version}
    for one in copies:
        (one / "schema.json").unlink()
    assert load_bundle(f"file://{tmp_path}/first").manifest.created == "first"


def test_promotion(registry: str, folder: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model worse than the base rate, one that beats it, a worse one, an equal one and a clearly better one."""
    client = MlflowClient()
    job = PromoteJob("clicks-promoted", str(dataset), rule=RULE)

    def candidate(run: Path) -> str:
        register_job(RegisterJob(str(run), "clicks-promoted"))
        return client.get_model_version_by_alias("clicks-promoted", "candidate").version

    def champion() -> str:
        return client.get_model_version_by_alias("clicks-promoted", "champion").version

    def why(version: str) -> str:
        found = client.get_model_version("clicks-promoted", version)
        decision = found.tags["promotion.decision"]
        assert found.description.split("\n\n")[1] in capsys.readouterr().out and decision in ("promoted", "not promoted")
        assert float(found.tags["promotion.difference"]) == pytest.approx(
            float(found.tags["promotion.candidate"]) - float(found.tags["promotion.rival"]), abs=1e-5
        )
        return f"{decision} against {found.tags['promotion.against']} by {found.tags['promotion.metric']}"

    with pytest.raises(FileNotFoundError, match="no version of clicks-promoted has the alias candidate"):
        promote_job(job)
    weak = candidate(folder / "weak")
    assert promote_job(job) == NOT_PROMOTED
    assert why(weak) == "not promoted against the base rate by ne"
    good = candidate(folder / "good")
    assert promote_job(job) == 0 and champion() == good
    assert why(good) == "promoted against the base rate by ne"
    found = client.get_model_version("clicks-promoted", good)
    assert float(found.tags["promotion.candidate"]) == pytest.approx(outcome(folder / "good")["test_ne"], abs=1e-6)
    assert int(found.tags["promotion.rows"]) == json.loads((dataset / "summary.json").read_text())["rows"]["test"]
    assert promote_job(job) == 0 and "is the champion already" in capsys.readouterr().out

    equal = client.create_model_version("clicks-promoted", found.source, run_id=found.run_id, model_id=found.model_id)
    client.set_registered_model_alias("clicks-promoted", "candidate", equal.version)
    assert promote_job(job) == NOT_PROMOTED and champion() == good
    assert why(equal.version) == f"not promoted against champion version {good} by ne"
    assert client.get_model_version("clicks-promoted", equal.version).tags["promotion.difference"] == "0"
    client.set_registered_model_alias("clicks-promoted", "candidate", weak)
    assert promote_job(job) == NOT_PROMOTED and champion() == good
    assert why(weak) == f"not promoted against champion version {good} by ne"
    client.set_registered_model_alias("clicks-promoted", "champion", weak)
    client.set_registered_model_alias("clicks-promoted", "candidate", good)
    assert promote_job(PromoteJob("clicks-promoted", str(dataset), rule=PromotionRule("auc", draws=200))) == 0
    assert champion() == good and why(good) == f"promoted against champion version {weak} by auc"
    with pytest.raises(ValueError, match="--metric ndcg_at_10: a dlrm is measured by auc, ne, logloss"):
        client.set_registered_model_alias("clicks-promoted", "candidate", weak)
        promote_job(PromoteJob("clicks-promoted", str(dataset), rule=PromotionRule("ndcg_at_10")))


def test_a_retrieval_model_returns_query_vectors_and_is_promoted_by_its_users(
    registry: str,
    folder: Path,
    raw: Path,  # noqa: F811
    ray_session: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = prepare(preparation(raw, folder / "choices")).root
    client = MlflowClient()
    for name, epochs, steps in (("untrained", 1, 1), ("trained", 4, 0)):
        config = TrainConfig(
            run_dir=str(folder / name),
            data=DataConfig(path=str(data)),
            model=TwoTowerConfig(embedding_dim=16, query_layers=(), candidate_layers=()),
            optimizer=OptimizerConfig(sparse="adagrad", sparse_learning_rate=0.2),
            train=LoopConfig(epochs=epochs, max_steps=steps, global_batch=256, patience=0),
            tracking=TrackingConfig(uri=registry),
        )
        run_workers(train, 1, config)
    rows = pa.table({"user_id": [3, None, 10**6], "country": ["north", None, "east"], "recent_items": [[1, 2], None, []]})
    register_job(RegisterJob(str(folder / "untrained"), "choices"))
    found = mlflow.pyfunc.load_model("models:/choices@candidate").predict(rows.to_pandas())
    np.testing.assert_allclose(found, load_retriever(folder / "untrained").embed_queries(rows), atol=1e-6)
    client.set_registered_model_alias("choices", "champion", 1)
    register_job(RegisterJob(str(folder / "trained"), "choices"))
    assert promote_job(PromoteJob("choices", str(data), rule=RULE)) == 0
    tags = client.get_model_version_by_alias("choices", "champion").tags
    for side, run in (("candidate", "trained"), ("rival", "untrained")):
        assert float(tags[f"promotion.{side}"]) == pytest.approx(outcome(folder / run)["test_ndcg_at_10"], abs=1e-5)
    assert tags["promotion.metric"] == "ndcg_at_10" and "users" in capsys.readouterr().out


def test_a_training_job_registers_its_model(
    folder: Path, registry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run is resumed, so that the job has nothing left to do but to register."""
    run = copied(folder / "good", tmp_path / "run")
    config = from_json((run / "config.json").read_text(), model_config)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    launch = LaunchConfig("local", 1)
    launch_training(dataclasses.replace(config, register="ranker", tracking=tracking, launch=launch), Path.absolute)
    assert "model    ranker version 1, alias candidate" in capsys.readouterr().out

    wanted = dataclasses.replace(config, register="ranker")
    catalog = dataclasses.replace(wanted, tracking=dataclasses.replace(config.tracking, registry_uri="databricks-uc"))
    with pytest.raises(ValueError, match=r"wants three parts, catalog\.schema\.model"):
        check_registration(catalog)
    check_registration(dataclasses.replace(catalog, register="main.recsys.ranker"))
    with pytest.raises(ValueError, match=r"--register ranker needs --tracking\.backend mlflow"):
        check_registration(dataclasses.replace(wanted, tracking=TrackingConfig(backend="none")))
    assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == registry


def test_a_run_without_mlflow_gets_a_run_there_and_a_failed_registration_says_what_is_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = copied(folder / "good", tmp_path / "run")
    (run / ".mlflow_run_id").unlink()
    write_outcome(run, outcome(run) | {"tracking_run_id": ""})
    (tmp_path / "other").mkdir()
    uri = mlflow_uri(tmp_path / "other")
    job = RegisterJob(str(run), "clicks", tracking_uri=uri)
    register_job(job)
    register_job(job)
    (version,) = MlflowClient(uri).search_model_versions("name='clicks'")
    assert MlflowClient(uri).get_run(version.run_id).data.params["train.global_batch"] == "1024"
    with pytest.raises(JobError, match=rf"the run in {run} is whole, but it is not registered as clicks: MLflow at"):
        register_job(RegisterJob(str(run), "clicks", tracking_uri=uri, registry_uri="http://127.0.0.1:9"))


@pytest.mark.unit
def test_names_in_unity_catalog_have_three_parts() -> None:
    for uri in ("databricks-uc", "databricks-uc://profile", "uc:http://catalog"):
        check_registered_name("main.recsys.clicks", uri)
        for name in ("clicks", "recsys.clicks", "a.b.c.d", "main..clicks", "main.recsys.", "main.my schema.clicks", "main.a/b.c"):
            with pytest.raises(ValueError, match=r"wants three parts, catalog\.schema\.model, such as main\.recsys\.ranker"):
                check_registered_name(name, uri)
    for uri in ("sqlite:///mlflow.db", "databricks", "http://localhost:5000"):
        check_registered_name("clicks", uri)
        for name in ("", " ", "a/b", "a:b", "a@b"):
            with pytest.raises(ValueError, match="a registered model wants a name without any of"):
                check_registered_name(name, uri)
