"""Inspects the request log of a served recommender: drift, what is recommended, quality by labels; a report, and alarms.

    python jobs/monitor.py --log logs/requests --data datasets/views
    python jobs/monitor.py --log logs/requests --data datasets/views --since 2026-11-30 --baseline logs/first-day
    python jobs/monitor.py --log logs/requests --data datasets/views --labels data/clicks.parquet --ranker runs/dlrm
    python jobs/monitor.py --log logs/requests --data datasets/views --threshold.psi 0.1 --tracking.backend none

It writes an HTML report, records its figures in MLflow, and prints a line for each alarm. The exit code is 3 if there is any, so
that a scheduler notices. docs/monitoring.md explains the figures, and when they are an alarm.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.config import TrackingConfig
from recsys_ray.logs import configure_logging
from recsys_ray.serving.monitor.inspection import WatchConfig, inspect_log
from recsys_ray.serving.monitor.record import record_inspection
from recsys_ray.serving.monitor.report import write_monitoring_report

ALARMED = 3
"""Exit code when an alarm was raised; 1 is an error and 2 a wrong flag."""


@dataclass(frozen=True)
class MonitorJob(WatchConfig):
    """The flags of this job: what is inspected, and where the result goes."""

    out: str = ""
    """The report; empty: `monitor/report.html` in the folder of the log."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def main(job: MonitorJob) -> int:
    """Writes the report, prints the alarms, and returns the exit code."""
    out = Path(job.out or Path(job.log, "monitor", "report.html"))
    found = inspect_log(job)
    write_monitoring_report(out, found)
    hint = record_inspection(found, out, job, job.tracking)
    for alarm in found.alarms:
        print(f"ALARM    {alarm}")
    print(f"report   {out}: {found.traffic.requests:,} requests, {len(found.alarms)} alarms")
    if hint:
        print(hint)
    return ALARMED if found.alarms else 0


if __name__ == "__main__":
    configure_logging()
    with readable_errors(when_interrupted="no report was written"):
        sys.exit(main(tyro.cli(MonitorJob, description=__doc__)))
