"""A real client of S3, against a server of S3's interface on this machine: every test of locks, and a bundle that is loaded."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from recsys_ray.bundle.manifest import BundleError
from recsys_ray.config import TrainConfig, with_absolute_paths
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.serving.bundle import load_ranker
from tests.support.damage import flip_a_byte
from tests.test_bundle import raw_rows
from tests.test_locks import (  # noqa: F401 (tests that take the `url` of this module)
    test_a_held_lock_is_renewed,
    test_a_lock_is_released_where_the_body_fails,
    test_a_process_of_this_machine_that_was_killed_holds_nothing,
    test_a_stale_lock_is_taken_over_and_its_holder_finds_out,
    test_one_holder_at_a_time,
    test_only_one_of_many_takes_over,
    test_what_a_dying_process_left_half_written_is_taken_over,
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket, which fsspec reaches in this process and in those that it starts."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "a-key-of-the-tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/{uuid.uuid4().hex}/index/build.lock"


def test_a_bundle_is_loaded_and_a_damaged_one_refused_until_it_is_whole(
    bucket: str, one_epoch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where copies of bundles are kept
    expected, files = load_ranker(one_epoch), fsspec.filesystem("s3")
    damaged = Path(shutil.copytree(one_epoch / "model", tmp_path / "model"))
    weights = max(damaged.rglob("*.safetensors"), key=lambda file: file.stat().st_size)
    flip_a_byte(weights)
    files.put(f"{damaged}/", f"{bucket}/run/model/", recursive=True)
    for _ in range(2):
        with pytest.raises(BundleError, match=rf"bucket/run/model/weights/{weights.name} does not fit its checksum"):
            load_ranker(f"{bucket}/run")
    files.put(f"{one_epoch}/model/", f"{bucket}/run/model/", recursive=True)
    found, rows = load_ranker(f"{bucket}/run"), raw_rows(expected, 100)
    assert found.version == expected.version
    np.testing.assert_array_equal(found.predict(rows), expected.predict(rows))
    with pytest.raises(FileNotFoundError, match="s3://bucket/nothing has no model bundle"):
        load_ranker(f"{bucket}/nothing")


def test_a_run_directory_on_an_object_store_is_refused(bucket: str) -> None:
    with pytest.raises(ValueError, match=r"--run-dir s3://bucket/run is a URL: .*--checkpoint\.folder takes a URL"):
        with_absolute_paths(TrainConfig(run_dir=f"{bucket}/run", model=DLRMConfig()))
