"""Logging set up so that the terminal shows this package's progress lines, and only errors of other libraries."""

from __future__ import annotations

import logging
import warnings

QUIET = ("torchrec", "torch.fx", "streaming", "mlflow", "alembic")


def configure_logging() -> None:
    """Shows progress lines of this package and silences what libraries announce as they load and plan.

    Under Ray every line of every worker reaches the user's terminal, where the announcements would drown the progress lines.
    Called once in each process, before its work begins.
    """
    logging.basicConfig()
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("recsys_ray").setLevel(logging.INFO)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch|recsys_ray")
    logging.getLogger().addFilter(_is_news)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    # fbgemm's lookup of data-parallel tables has a backward pass of its own, which works: it is registered in an older way.
    warnings.filterwarnings("ignore", message="fbgemm::dense_embedding_codegen_lookup_function")


def _is_news(record: logging.LogRecord) -> bool:
    """Returns False for what TorchRec's planner warns of every data-parallel table, on the root logger."""
    return not record.getMessage().startswith("Sharding spec not found for ")
