"""The training run: `train(config)` on every worker, from joining the process group to the finished run directory."""
