"""Compares the precisions that a ranking model can be served with: AUC on the test split, bytes in memory, and rows a second.

    python jobs/compare_precision.py --model runs/dlrm
    python jobs/compare_precision.py --model models:/clicks@champion --data /shared/datasets/clicks

Embedding tables are kept in fp32, fp16 or int8 (`--tables` of score.py, recommend.py and serve.py), and the dense part runs in
PyTorch, ONNX Runtime, or ONNX Runtime with weights of eight bits (`--inference`). The first line is what the others differ from.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.command_line import readable_errors
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.serving.location import bundle_folder
from recsys_ray.serving.precision import HEADER, compare_precision


@dataclass(frozen=True)
class PrecisionJob:
    """The flags of this job."""

    model: str
    """A finished run of a ranking model, its `model` folder, the URL of one, or a registered model."""
    data: str = ""
    """A dataset directory with a test split; empty: the one that the model was trained on."""


def main(job: PrecisionJob) -> None:
    """Prints a line for each precision, as soon as it is measured."""
    dataset = DatasetDirectory.open(job.data or open_bundle(bundle_folder(job.model)).manifest.dataset["path"])
    print(f"{job.model} on the test split of {dataset.root}\n{HEADER}")
    for figures in compare_precision(job.model, dataset):
        print(figures.line(), flush=True)


if __name__ == "__main__":
    with readable_errors(when_interrupted="nothing has been written"):
        main(tyro.cli(PrecisionJob, description=__doc__))
