"""The one place that imports Mosaic Streaming.

`import streaming` pulls in its vision, text and multimodal parts, and vision wants torchvision, which cannot be installed
beside a CPU-only torch from the same source. Nothing here reads images, so empty modules stand in for those three parts.
"""

import sys
from types import ModuleType

for _part in ("vision", "text", "multimodal"):
    sys.modules.setdefault(f"streaming.{_part}", ModuleType(f"streaming.{_part}"))

from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.util import clean_stale_shared_memory, merge_index  # noqa: E402

__all__ = ["MDSWriter", "StreamingDataset", "clean_stale_shared_memory", "get_partitions", "merge_index"]
