"""Checkpoints and resume under faults: damaged or half-written files, a full disk, a failing store, SIGKILL and SIGTERM."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch.multiprocessing import ProcessRaisedException

from recsys_ray.checkpoint import store
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config import CheckpointConfig, TrainConfig
from recsys_ray.training.train import train
from tests.support.damage import flip_a_byte
from tests.support.faults import batches_through, train_and_send_sigterm
from tests.support.processes import ROOT
from tests.support.runs import copied, dlrm_config, log_of, logged_train, newest_progress, outcome, same_weights
from tests.support.workers import run_workers


@pytest.fixture(scope="module")
def stopped(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains 30 steps of the first epoch on two workers, row-wise, with checkpoints at steps 20 and 30."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    run_workers(train, 2, dlrm_config(dataset, run_dir, every_steps=10, max_steps=30))
    return run_dir


def test_two_are_kept_and_say_what_they_hold(stopped: Path) -> None:
    kept = CheckpointStore(str(stopped / "checkpoints"))
    assert kept.committed() == [30, 20]
    progress = newest_progress(stopped)
    assert (progress["step"], progress["blocks_in_epoch"], progress["epoch"]) == (30, 240, 0)
    assert progress["tracking_run_id"] and len(progress["training"]) == 30 and progress["scores"][0][0] == 30
    assert {name.split("_")[2] for name in kept.marker(30)["files"] if name.startswith("__")} == {"0", "1"}


@pytest.mark.parametrize("name", ["__1_0.distcp", "committed.json"])
def test_flipped_byte_is_found_and_the_one_before_used(
    dataset: Path, stopped: Path, one_epoch: Path, tmp_path: Path, name: str
) -> None:
    run_dir = copied(stopped, tmp_path / "run")
    flip_a_byte(run_dir / "checkpoints" / "step_30" / name)
    run_workers(logged_train, 2, dlrm_config(dataset, run_dir))
    assert f"step_30 is damaged ({name} " in log_of(run_dir) and "trying the next one" in log_of(run_dir)
    assert "resuming after step 20, " in log_of(run_dir)
    assert same_weights(run_dir, one_epoch)


def test_half_written_one_is_not_gone_on_from(dataset: Path, stopped: Path, one_epoch: Path, tmp_path: Path) -> None:
    run_dir = copied(stopped, tmp_path / "run")
    (run_dir / "checkpoints" / "step_30" / "committed.json").unlink()
    run_workers(logged_train, 2, dlrm_config(dataset, run_dir))
    assert "resuming after step 20, " in log_of(run_dir) and "damaged" not in log_of(run_dir)
    assert same_weights(run_dir, one_epoch)


def test_nothing_sound_is_an_error_and_no_new_beginning(dataset: Path, stopped: Path, tmp_path: Path) -> None:
    run_dir = copied(stopped, tmp_path / "run")
    for file in (run_dir / "checkpoints").glob("*/__0_0.distcp"):
        file.write_bytes(b"")
    with pytest.raises(ProcessRaisedException, match=r"every checkpoint in .* is damaged: restore one, or remove them all"):
        run_workers(train, 2, dlrm_config(dataset, run_dir))


class FaultyStore(LocalFileSystem):
    """A store on this machine that fails while it writes step 20, in the way that a file or folder beside the checkpoints names.

    `full`: no space is left. `fail`: each file fails three times, and then succeeds. `kill`: the worker of rank 1 is killed when
    it has written the first bytes of its file.
    """

    protocol = "faulty"

    def _open(self, path: str, mode: str = "rb", **how: Any) -> Any:
        root, name = Path(path).parents[1], Path(path).name
        if mode == "wb" and "step_20/" in path:
            if (root / "full").exists():
                raise OSError(errno.ENOSPC, "No space left on device", path)
            if (root / "fail").exists():
                self._fail_three_times(root / "fail" / name)
            if (root / "kill").exists() and name == "__1_0.distcp":
                Path(path).write_bytes(b"the beginning")
                (root / "kill" / "done").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, mode, **how)

    def _fail_three_times(self, attempts: Path) -> None:
        attempts.touch()
        if len(attempts.read_text()) < 3:
            attempts.write_text(attempts.read_text() + "x")
            raise ConnectionError("the store does not answer")


def train_on_faulty_store(config: TrainConfig) -> None:
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    pytest.MonkeyPatch().setattr(store, "FIRST_WAIT_SECONDS", 0.01)
    logged_train(config)


def on_faulty_store(config: TrainConfig, folder: Path) -> TrainConfig:
    checkpoint = CheckpointConfig(f"faulty://{folder}", every_steps=10, keep_last=9)
    return dataclasses.replace(config, checkpoint=checkpoint)


@pytest.mark.parametrize("fault", ["full", "fail"])
def test_store_that_fails_ends_no_run(dataset: Path, one_epoch: Path, tmp_path: Path, fault: str) -> None:
    """A full store loses one checkpoint, and says so; those before and after are kept. Three failures in a row lose nothing."""
    folder, run_dir = tmp_path / "store", tmp_path / "run"
    (folder / fault).mkdir(parents=True)
    run_workers(train_on_faulty_store, 2, on_faulty_store(dlrm_config(dataset, run_dir), folder))
    steps = {int(path.parent.name.removeprefix("step_")) for path in folder.glob("step_*/committed.json")}
    assert steps == {10, 30, 40, outcome(run_dir)["steps"]} | ({20} if fault == "fail" else set())
    assert (folder / "step_20").exists() == (fault == "fail")
    message = "No space left on device" if fault == "full" else "the store does not answer): trying again"
    assert message in log_of(run_dir) + log_of(run_dir, rank=1)
    assert ("step_20 could not be written: worker rank 0: OSError" in log_of(run_dir)) == (fault == "full")
    assert same_weights(run_dir, one_epoch)


def test_kill_within_a_save_leaves_the_one_before(dataset: Path, one_epoch: Path, tmp_path: Path) -> None:
    folder, run_dir = tmp_path / "store", tmp_path / "run"
    (folder / "kill").mkdir(parents=True)
    wanted = on_faulty_store(dlrm_config(dataset, run_dir), folder)
    with pytest.raises(Exception, match=r"SIGKILL|signal 9|Connection|peer"):
        run_workers(train_on_faulty_store, 2, wanted)
    assert (folder / "kill" / "done").exists()
    assert CheckpointStore(str(folder)).committed() == [10]
    shutil.rmtree(folder / "kill")
    run_workers(train_on_faulty_store, 2, wanted)
    assert "resuming after step 10, " in log_of(run_dir)
    assert same_weights(run_dir, one_epoch)


def poisoned_train(config: TrainConfig) -> None:
    """Trains with an infinite weight for one row of the second worker's 24th batch."""
    numbers = itertools.count(1)

    def poisoned(batches: Iterator[Columns]) -> Iterator[Columns]:
        for columns in batches:
            if next(numbers) == 24 and os.environ["RANK"] == "1":
                columns[ROW_WEIGHT][5] = float("inf")
            yield columns

    with batches_through(poisoned):
        train(config)


def test_loss_that_is_not_finite_stops_the_run_and_names_its_batch(dataset: Path, tmp_path: Path) -> None:
    """The loss is checked every 50 steps and before each checkpoint, so the one of step 30 is never made."""
    run_dir = tmp_path / "run"
    wanted = dataclasses.replace(dlrm_config(dataset, run_dir, every_steps=10, log_every=50))
    with pytest.raises(ProcessRaisedException, match=r"the loss of step 24 is not finite \(epoch 1, batch of row blocks train/"):
        run_workers(poisoned_train, 2, wanted)
    assert CheckpointStore(str(run_dir / "checkpoints")).committed() == [20, 10]
    found = json.loads((run_dir / "not_finite.json").read_text())
    assert (found["step"], found["epoch"], found["first_block"], found["checkpoint"]) == (24, 0, 23 * 8, 20)
    assert len(set(found["blocks"])) == 8
    replay = [sys.executable, *found["replay"].split()[1:]]
    done = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming after step 20, " in done.stdout + done.stderr
    assert "this time the loss of step 24 is finite" in done.stdout  # the row's weight was never in the dataset
    assert re.search(rf"^label +{8 * 128:,} +0 ", done.stdout, re.MULTILINE)


def test_named_blocks_are_those_of_the_batch(dataset: Path, tmp_path: Path) -> None:
    run_workers(compare_places, 1, dlrm_config(dataset, tmp_path / "run"), tmp_path / "cache")


def compare_places(config: TrainConfig, cache: Path) -> None:
    """Compares the second batch of the second epoch, on a worker, with the rows at the stream's positions of that batch."""
    import torch.distributed as dist

    from recsys_ray.compat.streaming_compat import StreamingDataset
    from recsys_ray.data.dataset.directory import DatasetDirectory
    from recsys_ray.data.loading.stream import BlockStream, batch_layout

    dist.init_process_group("gloo")
    directory = DatasetDirectory.open(config.data.path)
    folder, name = str(directory.split("train")), directory.schema.dense[0].name
    stream = BlockStream(folder, cache / "train", batch_layout(1024, 128, 1), seed=0, shuffle=True, config=config.data, weight="")
    stream.start_at(1, 8)
    batch, places = next(iter(stream)), stream.places(1, 8)
    blocks = StreamingDataset(remote=folder, local=str(cache / "plain"), batch_size=1)
    firsts = itertools.accumulate([0, *(shard.samples for shard in blocks.shards)])
    starts = dict(zip([shard.file_pairs[0][0].basename for shard in blocks.shards], firsts, strict=False))
    rows = [torch.from_numpy(blocks[starts[shard] + number][name].copy()) for shard, number in places]
    assert torch.equal(batch[name].sort().values, torch.cat(rows).sort().values)
    dist.destroy_process_group()


def test_sigterm_saves_and_ends(dataset: Path, one_epoch: Path, tmp_path: Path) -> None:
    """SIGTERM reaches one of two workers; both save the same step, from which the rest of the epoch is trained."""
    wanted = dlrm_config(dataset, tmp_path / "run")
    with pytest.raises(Exception, match=r"exit code 143"):
        run_workers(train_and_send_sigterm, 2, wanted)
    (step,) = CheckpointStore(str(tmp_path / "run" / "checkpoints")).committed()
    assert step in (12, 13, 14)
    run_workers(logged_train, 2, wanted)
    assert f"resuming after step {step}, " in log_of(tmp_path / "run") and same_weights(tmp_path / "run", one_epoch)
