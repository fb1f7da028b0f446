"""The models of a batch job: checked where the job starts, and loaded again in each of its worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.ranker import Ranker
from recsys_ray.serving.retriever import Retriever

InferenceChoice = Literal["auto", "torch", "onnx"]
InferenceDevice = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class BatchModel:
    """A bundle that worker processes load, which must hold the version that the job was started with."""

    location: str
    version: str
    device: InferenceDevice = "cpu"
    inference: InferenceChoice = "torch"

    def load_ranker(self) -> Ranker:
        """Loads a ranking model. Raises ValueError where another version has taken its place."""
        ranker = load_ranker(self.location, device=self.device, engine=self.inference)
        self._check(ranker.version)
        return ranker

    def load_retriever(self) -> Retriever:
        """Loads a retrieval model. Raises ValueError where another version has taken its place."""
        retriever = load_retriever(self.location, device=self.device)
        self._check(retriever.version)
        return retriever

    def _check(self, found: str) -> None:
        if found != self.version:
            raise ValueError(f"{self.location} holds model {found}, but this job began with {self.version}: run it again")


def absolute_location(location: str) -> str:
    """Returns a location that means the same in every process: URLs stay as they are."""
    return location if "://" in location else str(Path(location).absolute())


def chosen_inference(wanted: InferenceChoice, ranker: Ranker) -> InferenceChoice:
    """Returns what runs the dense part: for auto ONNX Runtime on a CPU where it is installed and the model can be split."""
    if wanted != "auto":
        return wanted
    can = ranker.device.type == "cpu" and ranker.task.split is not None
    return "onnx" if can and find_spec("onnxruntime") and find_spec("onnxscript") else "torch"
