"""A training job that receives a SIGKILL at a random moment, and is started again until it ends.

A seed decides what is killed and when, so that a failure can be reproduced.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from recsys_ray.bundle.reader import open_bundle
from tests.support.processes import MARK, ROOT, marked, wait_until_gone

WORKERS = 2
EPOCHS = 2
PHASES = ("step", "save", "evaluation", "edge", "any")
KEPT_BY_OTHERS = {"local": ("torchinductor_",), "ray": ("torchinductor_", "ray", "pymp-")}
"""Prefixes of temporary files that are not the job's own: torch's cache, Ray's session folder, those of Ray's dashboard."""
PART = re.compile(r"first step [\d.]+ s after the worker began: (.*)")


@dataclass(frozen=True)
class Kill:
    """The process to kill in one run, and the phase of the run to kill it in; "any" includes start-up."""

    seed: int
    engine: str
    victim: str
    """worker, driver, or under Ray node: the raylet and all workers."""
    phase: str

    @staticmethod
    def drawn(seed: int, engine: str) -> Kill:
        """Draws victim and phase from the seed."""
        draw = random.Random(seed)
        victims = ["worker", "worker", "driver"] + (["node"] if engine == "ray" else [])
        return Kill(seed, engine, draw.choice(victims), draw.choice(PHASES))


@dataclass
class Outcome:
    """What one kill led to."""

    kill: Kill
    killed: bool = False
    """Whether the job was still running when it was to be killed."""
    weights: bytes = b""
    starts: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """From the kill to the first new step, by part; empty if no step was left to train."""
    left: list[str] = field(default_factory=list)


class Job:
    """A run of `jobs/train_dlrm.py`, with a run directory and a temporary folder of its own."""

    def __init__(self, dataset: Path, folder: Path, engine: str, flags: tuple[str, ...] = ()) -> None:
        self.run_dir, self.log = folder / "run", folder / "log"
        self.mark, self.temporary = uuid.uuid4().hex, Path(tempfile.mkdtemp(prefix="chaos-"))
        self._engine = engine
        self._shared_before = _names("/dev/shm")
        self.command = [sys.executable, "jobs/train_dlrm.py", f"--data.path={dataset}", f"--run-dir={self.run_dir}"]
        self.command += [f"--train.epochs={EPOCHS}", "--train.patience=0", "--train.global-batch=1024", "--train.log-every=1"]
        self.command += ["--checkpoint.every-steps=9", "--model.embedding-dim=8", f"--launch.engine={engine}"]
        self.command += [f"--launch.workers={WORKERS}", "--launch.max-failures=3", *flags]
        folder.mkdir(parents=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Starts the job, or starts it again in the same run directory."""
        environment = {**os.environ, MARK: self.mark, "TMPDIR": str(self.temporary)}
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    def text(self) -> str:
        """Returns what the job has printed so far, in all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def workers(self) -> dict[int, int]:
        """Returns process ids by rank, of the attempt that began last."""
        records = []
        for file in self.run_dir.glob(".workers/*/rank-*.json"):
            try:
                records.append((file.parent, json.loads(file.read_text())))
            except (OSError, ValueError):  # being removed
                continue
        last = max(records, key=lambda entry: entry[1]["began"], default=(None, None))[0]
        return {record["rank"]: record["pid"] for folder, record in records if folder == last}

    def raylets(self) -> list[int]:
        """Returns the process ids of the job's raylets."""
        return [int(line.split()[0]) for line in marked(self.mark) if "/raylet " in line]

    def left(self) -> list[str]:
        """Returns processes, shared memory and temporary files that the job left. Nothing else may run on the machine."""
        found = wait_until_gone(lambda: marked(self.mark), 90)  # processes of Ray that outlive a killed job end by themselves
        found += wait_until_gone(lambda: _names("/dev/shm") - self._shared_before, 30)
        found += wait_until_gone(self._temporary_files, 30)
        shutil.rmtree(self.temporary, ignore_errors=True)
        return found

    def _temporary_files(self) -> set[str]:
        return {name for name in _names(self.temporary) if not name.startswith(KEPT_BY_OTHERS[self._engine])}

    def weights(self) -> bytes:
        """Returns the bytes of all exported tensors."""
        bundle = open_bundle(self.run_dir)
        return b"".join(bundle.read_tensor(name).numpy().tobytes() for name in sorted(bundle.manifest.tensors))


def uninterrupted(dataset: Path, folder: Path, engine: str) -> tuple[bytes, float]:
    """Runs a job that nothing disturbs. Returns its weights and how many seconds it took."""
    job, began = Job(dataset, folder, engine), time.monotonic()
    process = job.start()
    if process.wait(300):
        raise AssertionError(job.text()[-3000:])
    seconds = time.monotonic() - began
    if left := job.left():
        raise AssertionError(f"an uninterrupted run left {left}")
    return job.weights(), seconds


def run(kill: Kill, dataset: Path, folder: Path, whole_seconds: float) -> Outcome:
    """Runs a job, kills it, and starts it again unless its launcher does. An undisturbed run takes `whole_seconds`."""
    job, outcome = Job(dataset, folder, kill.engine), Outcome(kill)
    draw = random.Random(f"{kill.seed} moment")
    process = job.start()
    outcome.starts = 1
    outcome.killed = _await(kill.phase, job, process, draw, whole_seconds)
    if outcome.killed:
        before = job.workers()
        victims = [process.pid]
        match kill.victim:
            case "worker" if before:
                victims = [before[draw.choice(sorted(before))]]
            case "node" if raylets := job.raylets():
                victims = [*raylets, *before.values()]
        lines = len(PART.findall(job.text()))
        killed = time.time()
        for pid in victims:
            _sigkill(pid)
        if kill.victim == "node" or victims == [process.pid]:
            process.wait(120)
            process, outcome.starts = job.start(), outcome.starts + 1
        outcome.seconds = _recovery(job, process, killed, set(before.values()), lines)
    if process.wait(300):
        raise AssertionError(f"{kill}: {job.text()[-3000:]}")
    outcome.left, outcome.weights = job.left(), job.weights()
    return outcome


def _await(phase: str, job: Job, process: subprocess.Popen[bytes], draw: random.Random, whole_seconds: float) -> bool:
    """Waits for the moment to kill. Returns False if the job ends first."""
    deadline, delay = time.monotonic() + 240, draw.uniform(0, 0.3)
    wanted_step, wanted_save = draw.randint(1, 40), draw.randint(0, 3)
    at = time.monotonic() + draw.uniform(0.2, 0.95) * whole_seconds
    seen: set[Path] = set()
    while process.poll() is None and time.monotonic() < deadline:
        text = job.text() if phase in ("step", "evaluation", "edge") else ""
        match phase:
            case "step" if re.search(rf"epoch 1/\d+ +step +{wanted_step} ", text):
                time.sleep(delay / 10)
                return True
            case "save":
                seen |= {path for path in job.run_dir.glob("checkpoints/step_*") if not (path / "committed.json").exists()}
                if len(seen) > wanted_save:
                    return True
            case "evaluation" if (steps := re.findall(r"step +(\d+) \((\d+) an epoch\)", text)) and steps[-1][0] == steps[-1][1]:
                time.sleep(delay)
                return True
            case "edge" if "epoch 1: validation" in text:
                time.sleep(delay / 10)
                return True
            case "any" if time.monotonic() >= at:
                return True
        time.sleep(0.002)
    return False


def _recovery(job: Job, process: subprocess.Popen[bytes], killed: float, before: set[int], lines: int) -> dict[str, float]:
    """Waits for the first new step. Returns the seconds by part.

    Detection lasts until the remaining workers are gone, restart until the first new one has begun.
    """
    detected = began = 0.0
    while process.poll() is None and len(PART.findall(job.text())) <= lines:
        now = time.time()
        if not detected and not any(_alive(pid) for pid in before):
            detected = now
        if not began and (new := job.workers()) and not set(new.values()) & before:
            began = now
        time.sleep(0.01)
    found = PART.findall(job.text())
    if len(found) <= lines or not began:
        return {}  # nothing was left to train
    parts = {name: float(seconds) for name, seconds in re.findall(r"([a-z]+[a-z ]*) ([\d.]+)", found[-1])}
    detected = min(detected or began, began)
    return {
        "detection": detected - killed,
        "restart": began - detected,
        "join and build": parts["process group"] + parts["model"],
        "load": parts["checkpoint"],
        "first batch and step": parts["data"] + parts["first step"],
        "all": time.time() - killed,
    }


def _names(folder: Path | str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _sigkill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
