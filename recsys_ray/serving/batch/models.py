"""The models of a batch job: checked where the job starts, and loaded again in each of its worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys_ray.serving.bundle import InferenceEngine, TablePrecision, load_ranker, load_retriever
from recsys_ray.serving.ranker import Ranker
from recsys_ray.serving.retriever import Retriever

InferenceDevice = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class BatchModel:
    """A bundle that worker processes load, which must hold the version that the job was started with."""

    location: str
    version: str
    device: InferenceDevice = "cpu"
    inference: InferenceEngine = "torch"
    tables: TablePrecision = "fp32"

    def load_ranker(self) -> Ranker:
        """Loads a ranking model. Raises ValueError where another version has taken its place."""
        ranker = load_ranker(self.location, device=self.device, engine=self.inference, tables=self.tables)
        self.check_version(ranker.version)
        return ranker

    def load_retriever(self) -> Retriever:
        """Loads a retrieval model. Raises ValueError where another version has taken its place."""
        retriever = load_retriever(self.location, device=self.device)
        self.check_version(retriever.version)
        return retriever

    def check_version(self, found: str) -> None:
        """Raises ValueError where another version has taken the place of the job's."""
        if found != self.version:
            raise ValueError(f"{self.location} holds model {found}, but this job began with {self.version}: run it again")
