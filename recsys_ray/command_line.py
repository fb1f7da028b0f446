"""The end of a job on the command line: an error meant for its user becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys_ray.compat.versions import UncheckedVersionError

INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ended (128 + SIGINT)."""


class JobError(RuntimeError):
    """An error whose text tells the user of a job all they need, so that no traceback is shown."""


@contextmanager
def readable_errors(when_interrupted: str) -> Iterator[None]:
    """Exits with one line for an error that the user can fix: bad input (ValueError), files (OSError), a library of another
    version (UncheckedVersionError), or a JobError.

    Any other exception is a bug and keeps its traceback. `when_interrupted` says what Ctrl-C leaves behind.
    """
    job = Path(sys.argv[0]).stem
    try:
        yield
    except (ValueError, OSError, JobError, UncheckedVersionError) as error:
        sys.exit(f"{job}: {error}")
    except KeyboardInterrupt:
        print(f"{job}: interrupted; {when_interrupted}", file=sys.stderr)
        sys.exit(INTERRUPTED)
