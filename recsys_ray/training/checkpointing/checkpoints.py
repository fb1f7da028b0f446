"""A run's checkpoints: what they hold, and resuming from the newest intact one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray.checkpoint.restore import first_intact, newest_intact, restore
from recsys_ray.checkpoint.saver import Saver
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.config import TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.distributed import broadcast_value, get_rank
from recsys_ray.training.checkpointing.optimizer_migration import restore_optimizer
from recsys_ray.training.checkpointing.progress import Progress
from recsys_ray.training.checkpointing.run_identity import changed_settings, check_same_run, run_identity


class Checkpoints:
    """The checkpoints of a run. Every worker makes the same calls in the same order."""

    def __init__(self, config: TrainConfig, dataset: DatasetDirectory, model: Any, optimizer: CombinedOptimizer) -> None:
        self.store = CheckpointStore(config.checkpoint.folder or str(Path(config.run_dir) / "checkpoints"))
        self._model, self._optimizer, self._config = model, optimizer, config
        self._identity = run_identity(config, dataset)
        self._saver = Saver(self.store, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self._saved_step = 0

    def reserve(self) -> None:
        """Allocates the memory that a checkpoint is copied to, as large as this worker's state, in the background."""
        self._saver.reserve(self._state())

    def release(self) -> None:
        """Gives that memory back, once all checkpoints are written; call it when no more will be."""
        self._saver.release()

    def resume(self) -> tuple[Progress, list[str]]:
        """Restores the newest intact checkpoint, if there is one, and returns its progress and which settings have changed since.

        Raises ValueError where it is of another model or dataset, or where every checkpoint is damaged.
        """
        found = newest_intact(self.store)
        if found is None:
            return Progress(), []
        step, note = found
        self._saved_step = step
        check_same_run(note["identity"], self._identity, self._config.run_dir)
        self.restore_weights(step)
        restore_optimizer(self.store, step, self._model, self._optimizer)
        return Progress.from_note(note["progress"]), changed_settings(note["settings"], self._config)

    def save(self, progress: Progress) -> None:
        """Copies the state and writes it in the background; a step that is saved already is not saved again."""
        if progress.step != self._saved_step:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        self._saved_step = progress.step
        self._saver.save(progress.step, self._state(), self._note(progress), self._best_first(progress))

    def amend(self, progress: Progress) -> None:
        """Updates the note of this step's checkpoint, once the step has been validated."""
        self._saver.amend(progress.step, self._note(progress), self._best_first(progress))

    def best(self, progress: Progress) -> int:
        """Returns the step of the best intact checkpoint, once all are written. Raises OSError where the last could not be."""
        if progress.step not in self._committed():  # it could not be written when it was due: try once more
            self._save(progress)
        committed = self._committed()
        if progress.step not in committed:
            raise OSError(
                f"the checkpoint of the last step, {progress.step}, could not be written to {self.store.url}: see the warning "
                f"above; running again resumes after step {self.newest()}"
            )
        candidates = [step for step in [*progress.best_steps, progress.step] if step in committed]
        return first_intact(self.store, candidates)[0]

    def wait(self) -> None:
        """Waits until what was saved is written, or has failed."""
        self._saver.wait()

    def newest(self) -> int:
        """Returns the step of the newest checkpoint, once all are written; 0 where there is none."""
        return max(self._committed(), default=0)

    def _committed(self) -> list[int]:
        self._saver.wait()
        return broadcast_value(self.store.committed() if get_rank() == 0 else [])

    def close(self) -> None:
        """Ends the background writing; call it before the process group ends."""
        self._saver.close()

    def restore_weights(self, step: int) -> None:
        """Loads the weights, without optimizer state, of a checkpoint."""
        state = {"model": self._model.state_dict()}
        restore(self.store, step, state)
        self._model.load_state_dict(state["model"])

    def _state(self) -> dict[str, Any]:
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def _note(self, progress: Progress) -> dict[str, Any]:
        return {
            "progress": dataclasses.asdict(progress),
            "identity": self._identity,
            "settings": dataclasses.asdict(self._config),
        }

    def _best_first(self, progress: Progress) -> list[int]:
        return progress.best_steps if progress.scores else []


def weights_bytes(model: Any) -> int:
    """Returns the bytes of a sharded model's whole state dict."""
    return sum(tensor.size().numel() * tensor.dtype.itemsize for tensor in model.state_dict().values())
