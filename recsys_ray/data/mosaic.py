"""The one place that imports Mosaic Streaming.

`import streaming` pulls in its vision, text and multimodal parts, and vision wants torchvision, which cannot be installed
beside a CPU-only torch from the same source. Nothing here reads images, so empty modules stand in for those three parts.
"""

import itertools
import sys
from types import ModuleType

for _part in ("vision", "text", "multimodal"):
    sys.modules.setdefault(f"streaming.{_part}", ModuleType(f"streaming.{_part}"))

from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.shared import prefix as _prefix  # noqa: E402
from streaming.base.util import merge_index  # noqa: E402

__all__ = ["MDSWriter", "StreamingDataset", "get_partitions", "merge_index", "separate_shared_memory"]


def separate_shared_memory(neighbour: int) -> None:
    """Where workers of one host count as nodes of their own, each would take the first free names, all at the same moment.

    `neighbour`: how many such workers come before this one.
    """
    _prefix._each_prefix_int = lambda: itertools.count(1000 * neighbour)
