"""`python jobs/prepare_data.py` as a user runs it: its output, its exit status, and what remains after it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from tests.support.preparing import clicks, read_split, write_input
from tests.support.processes import ROOT

JOB = ROOT / "jobs" / "prepare_data.py"


@pytest.fixture
def job(ray_session, monkeypatch):
    """Starts the command on the tests' own Ray, which saves it from starting one."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    def start(*flags: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(JOB), *map(str, flags)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
    """Returns exit status, standard output, and the lines of standard error."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err.splitlines()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_from_a_first_schema_to_a_dataset(job, tmp_path):
    columns = clicks(400)
    columns["click"] = np.where(np.arange(400) % 20 == 0, 3, columns["click"])
    source, schema = write_input(tmp_path / "in", pa.table(columns | {"note": pa.nulls(400)})), tmp_path / "first.json"
    code, out, _ = finish(job("--parquet", source, "--infer-schema", schema))
    assert code == 0 and f"wrote {schema}: read it, edit it" in out and "left out: note (null)" in out
    flags = ("--parquet", source, "--schema", schema, "--out", tmp_path / "dataset", "--block-rows", 32)
    code, out, errors = finish(job(*flags))
    assert code == 0 and errors == [], errors
    assert "dataset: 400 rows in -> {'train': " in out and "20 rejected" in out and "rejected: 20 rows, click: not 0 or 1" in out
    assert set(read_split(tmp_path / "dataset", "train")[0].columns) == set(columns)
    code, out, _ = finish(job(*flags))
    assert code == 0 and "is up to date with its inputs" in out and "prepare: reading" not in out


def test_a_mistake_takes_one_line(job, tmp_path):
    source = write_input(tmp_path / "in", pa.table(clicks(100) | {"price": pa.array(["1"] * 100)}))
    code, out, errors = finish(job("--parquet", source, "--out", tmp_path / "dataset"))
    assert (code, out, len(errors)) == (1, "", 1), "Ray was started, or more was said than the mistake"
    assert errors[0].startswith(f"prepare_data: column 'price' in {source} has type string, but a dense column must be a number")
    assert names(tmp_path) == ["in"]


def test_a_mistake_found_while_reading_takes_one_line(job, tmp_path):
    source = write_input(tmp_path / "in", files=2)
    data = bytearray((source / "1.parquet").read_bytes())
    data[4:60] = b"\xff" * 56
    (source / "1.parquet").write_bytes(data)
    code, _, errors = finish(job("--parquet", source, "--out", tmp_path / "dataset"))
    assert (code, len(errors)) == (1, 1), errors
    assert errors[0].startswith(f"prepare_data: {source / '1.parquet'} is damaged (")
    assert names(tmp_path) == ["in"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    (disk := tmp_path / "disk").mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills(job, small_disk, tmp_path):
    columns = clicks(100_000) | {"tags": np.random.default_rng(0).integers(0, 1 << 60, (100_000, 12)).tolist()}
    source = write_input(tmp_path / "in", columns, files=2)
    code, _, errors = finish(job("--parquet", source, "--out", small_disk / "dataset"))
    assert (code, errors) == (
        1,
        [f"prepare_data: the disk of {small_disk}/dataset is full: free some space, or choose another --out"],
    )
    assert names(small_disk) == []


def test_an_interrupt_half_way(job, tmp_path):
    columns = clicks(1_000) | {"tags": [[1, 2]] * 1_000}
    table = pa.concat_tables([pa.table(columns)] * 400)
    source = write_input(tmp_path / "in", table, files=4)
    process = job("--parquet", source, "--out", tmp_path / "dataset")
    assert process.stdout is not None
    while process.stdout.readline().strip() != "prepare: writing ...":
        assert process.poll() is None, "it ended before it could be interrupted"
    staging = tmp_path / ".dataset.preparing"
    while not list(staging.glob("train/part-*")):
        assert process.poll() is None, "it ended before it could be interrupted"
    os.kill(process.pid, signal.SIGINT)
    code, _, errors = finish(process)
    assert (code, errors) == (130, ["prepare_data: interrupted; nothing was written"])
    assert names(tmp_path) == ["in"]
