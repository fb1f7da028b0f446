"""Registers the model of a finished run in MLflow's model registry, as the version with the alias `candidate`.

    python jobs/register.py runs/dlrm --name clicks
    python jobs/register.py runs/dlrm --name main.recsys.clicks --registry-uri databricks-uc      # Unity Catalog

The version is an MLflow model that scores raw rows, so that `mlflow.pyfunc.load_model` and `mlflow models serve` work wherever
this package is installed. `load_bundle("models:/clicks@candidate")` loads it without MLflow's wrapping. Running the job again
registers nothing new. `--register NAME` on a training job does the same at the end of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.training.finishing.registration import config_of_run, register_run


@dataclass(frozen=True)
class RegisterJob:
    """The flags of this job."""

    run_dir: tyro.conf.Positional[str]
    """A finished run of jobs/train_*.py."""
    name: str
    """The registered model; in Unity Catalog its name has three parts, catalog.schema.model."""
    tracking_uri: str = ""
    """The MLflow tracking server; empty: that of the run."""
    registry_uri: str = ""
    """The MLflow model registry, such as databricks-uc; empty: what the run's configuration says, or else MLflow's default."""


def main(job: RegisterJob) -> None:
    """Registers the run's model and says as which version."""
    run_dir = Path(job.run_dir).absolute()
    config = config_of_run(run_dir, job.name, tracking_uri=job.tracking_uri, registry_uri=job.registry_uri)
    print(f"model    {register_run(config)}")


if __name__ == "__main__":
    with readable_errors(when_interrupted="run it again to register the model"):
        main(tyro.cli(RegisterJob, description=__doc__))
