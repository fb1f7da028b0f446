"""Makes the candidate of a registered model its champion, if it is better than the champion on the same test rows.

    python jobs/promote.py clicks --data datasets/clicks --tracking-uri sqlite:///runs/mlflow.db
    python jobs/promote.py main.recsys.clicks --data /shared/datasets/clicks --registry-uri databricks-uc

Both versions score the test split of the dataset directory. A paired bootstrap, by user where the schema marks a user key, says
in which interval their difference lies; only an interval wholly on the candidate's side moves the alias `champion`. Without a
champion the rival is a trivial model: the base rate, or popularity. The reason is printed and written to the version.

Exit code 0: the candidate is the champion now. 3: it is not promoted. 1: an error, and nothing has changed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.reporting.registry.address import RegistryAddress, connected
from recsys_ray.reporting.registry.names import check_registered_name
from recsys_ray.serving.promotion.promote import PromotionRule, promote

NOT_PROMOTED = 3


@dataclass(frozen=True)
class PromoteJob:
    """The flags of this job."""

    name: tyro.conf.Positional[str]
    """The registered model."""
    data: str
    """A dataset directory with a test split, on which neither model was trained."""
    tracking_uri: str = ""
    """The MLflow tracking server; empty: MLflow's default, such as MLFLOW_TRACKING_URI."""
    registry_uri: str = ""
    """The MLflow model registry, such as databricks-uc; empty: MLflow's default, such as MLFLOW_REGISTRY_URI."""
    rule: tyro.conf.OmitArgPrefixes[PromotionRule] = field(default_factory=PromotionRule)


def main(job: PromoteJob) -> int:
    """Compares, promotes or not, says why, and returns the exit code."""
    dataset = DatasetDirectory.open(Path(job.data).absolute())
    with connected(RegistryAddress(job.tracking_uri, job.registry_uri)) as registry_uri:
        check_registered_name(job.name, registry_uri)
        decision = promote(job.name, dataset, job.rule)
    print("\n".join([*decision.lines, decision.reason]))
    return 0 if decision.promoted else NOT_PROMOTED


if __name__ == "__main__":
    with readable_errors(when_interrupted="no alias has moved"):
        sys.exit(main(tyro.cli(PromoteJob, description=__doc__)))
