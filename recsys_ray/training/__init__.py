"""The training run: `train(config)` on every worker, from joining the process group to the finished run directory.

The run directory, and who writes it:

config.json            the settings, at every start (start.py)
checkpoints/step_N/    every worker's shards, committed.json last (checkpoint/saver.py); --checkpoint.folder moves it
model/                 the bundle of the best checkpoint: weights, schema, vocabularies, manifest (finishing/export.py)
report.html            the report, written before outcome.json (reporting/report.py)
outcome.json           test metrics, written before the export: without model/ a run only exports (reporting/outcome.py)
not_finite.json        only after a loss that was not finite (not_finite.py)
dataset/               only if the job prepared raw Parquet or the sample data (job.py)
index/                 only after jobs/build_index.py
ray/                   Ray Train's own state, only with --launch.engine ray (launch/ray_launcher.py)
.mlflow_run_id         the MLflow run that a resumed run continues (reporting/tracking/mlflow_tracker.py)
.stop                  a request to stop, while it is pending (launch/stopping.py)
.workers/              records of the workers, kept only after a failure (launch/worker_records.py)

Next to it, without --tracking.uri: mlflow.db and mlartifacts/ of all runs.
"""
