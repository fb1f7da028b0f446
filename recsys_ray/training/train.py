"""The one function `train(config)`, which a launcher runs on every worker.

It joins the process group, builds, plans and shards the model, streams row blocks, trains, evaluates, checkpoints and reports.
Run again in the same run directory, it resumes from the last checkpoint.
"""

from __future__ import annotations

from recsys_ray.config import TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.stream import BatchLayout, batch_layout
from recsys_ray.distributed import World, broadcast_value, join_world
from recsys_ray.launch.stopping import stop_requested
from recsys_ray.logs import configure_logging
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import BuildContext
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.checkpointing.checkpoints import Checkpoints
from recsys_ray.training.finishing.finish import evaluate_and_finish
from recsys_ray.training.loop import Run, train_epochs
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.start import DirectoryFacts, autocast_type, log_start, open_streams, start_tracking, start_warm
from recsys_ray.training.timing import StartupTimes


def train(config: TrainConfig) -> None:
    """Trains `config.model` on the dataset directory `config.data.path`, and writes everything into `config.run_dir`.

    Raises ValueError for a configuration that cannot work, FileNotFoundError for a missing dataset, ShardError for a damaged
    one, RunNotFinite for a loss that is not finite.
    """
    startup = StartupTimes()
    configure_logging()
    with join_world(config.launch.cpus_per_worker) as world:
        startup.done("process group")
        if stop_already_requested(config.run_dir):
            return
        dataset = DatasetDirectory.open(config.data.path)
        layout = batch_layout(config.train.global_batch, dataset.summary["block_rows"], world.size)
        run = set_up_run(config, dataset, world, layout=layout, startup=startup)
        try:
            run.streams |= open_streams(config, dataset, world, layout)
            startup.done("data")
            if train_epochs(run):
                evaluate_and_finish(run, dataset)
            else:
                run.tracker.end("KILLED")
        except BaseException:
            run.tracker.end("FAILED")
            raise
        finally:
            run.checkpoints.close()


def set_up_run(
    config: TrainConfig, dataset: DatasetDirectory, world: World, *, layout: BatchLayout, startup: StartupTimes
) -> Run:
    """Builds and shards the model, restores the last checkpoint or starts from other weights, and opens the tracker."""
    autocast = autocast_type(config.train, world)
    context = BuildContext(dataset.schema, world.device, autocast, config.train.seed, DirectoryFacts(dataset))
    task = build_task(config.model, context)
    model = shard_model(
        task.module,
        world,
        sharding=config.sharding,
        optimizer=config.optimizer,
        local_batch=layout.rows,
        lookup_type=autocast if task.split else None,
    )
    initialise_tables(model, config.model.init_range, config.train.seed)
    optimizer = build_optimizer(model, config.optimizer)
    startup.done("model")
    checkpoints = Checkpoints(config, dataset, model, optimizer)
    progress, changes = checkpoints.resume()
    matches = start_warm(config, dataset, model) if config.init_from and not progress.step else []
    startup.done("checkpoint")
    run = Run(
        config=config,
        world=world,
        task=task,
        model=model,
        optimizer=optimizer,
        streams={},
        progress=progress,
        resumed_step=progress.step,
        tracker=start_tracking(config, world, progress, dataset=dataset, model=model),
        checkpoints=checkpoints,
        startup=startup,
    )
    log_start(run, changes, [*matches, layout.padding_note()])
    return run


def stop_already_requested(run_dir: str) -> bool:
    """Returns whether the launching process asked to stop while the workers started; the same on every worker."""
    return broadcast_value(stop_requested(run_dir))
