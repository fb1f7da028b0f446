"""The one place that imports Mosaic Streaming.

`import streaming` pulls in its vision, text and multimodal parts, and vision wants torchvision, which cannot be installed
beside a CPU-only torch from the same source. Nothing here reads images, so empty modules stand in for those three parts. It
pulls in transformers, too, most of a second in every process, for two types of batch that are not met here: stand-ins as well,
while it is imported.
"""

import itertools
import sys
import time
from multiprocessing.shared_memory import SharedMemory
from types import ModuleType

for _part in ("vision", "text", "multimodal"):
    sys.modules.setdefault(f"streaming.{_part}", ModuleType(f"streaming.{_part}"))
_types = {"feature_extraction_utils": "BatchFeature", "tokenization_utils_base": "BatchEncoding"}
_stand_ins = {"transformers": ModuleType("transformers")}
for _module, _type in _types.items():
    _stand_ins[f"transformers.{_module}"] = ModuleType(_module)
    setattr(_stand_ins[f"transformers.{_module}"], _type, type(_type, (), {}))
_stand_ins = {name: module for name, module in _stand_ins.items() if "transformers" not in sys.modules}
sys.modules |= _stand_ins

from streaming import MDSWriter, Stream, StreamingDataset  # noqa: E402
from streaming.base.batching import batching_methods  # noqa: E402
from streaming.base.batching.random import generate_work_random_batching  # noqa: E402
from streaming.base.constant import TICK  # noqa: E402
from streaming.base.dataset import _Iterator as StreamState  # noqa: E402
from streaming.base.dataset import _ShardState as ShardState  # noqa: E402
from streaming.base.format import Reader  # noqa: E402
from streaming.base.format.mds.encodings import NDArray  # noqa: E402
from streaming.base.format.mds.reader import MDSReader  # noqa: E402
from streaming.base.partition import get_partitions  # noqa: E402
from streaming.base.shared import memory as _memory  # noqa: E402
from streaming.base.shared import prefix as _prefix  # noqa: E402
from streaming.base.util import merge_index  # noqa: E402
from streaming.base.world import World  # noqa: E402

for _name in _stand_ins:
    del sys.modules[_name]

__all__ = [
    "TICK",
    "MDSReader",
    "MDSWriter",
    "NDArray",
    "Reader",
    "ShardState",
    "Stream",
    "StreamState",
    "StreamingDataset",
    "World",
    "batching_methods",
    "generate_work_random_batching",
    "get_partitions",
    "merge_index",
    "separate_shared_memory",
]

SIZED_WITHIN = 30.0
"""Seconds, in which a worker that makes a segment of shared memory gives it its size."""


def separate_shared_memory(neighbour: int) -> None:
    """Where workers of one host count as nodes of their own, each would take the first free names, all at the same moment.

    `neighbour`: how many such workers come before this one.
    """
    _prefix._each_prefix_int = lambda: itertools.count(1000 * neighbour)


def _shared_memory(name: str, create: bool, size: int = 0) -> SharedMemory:
    """Between a segment's making and its sizing another worker may find it empty: Mosaic Streaming allows 7 ms for that, less
    than a busy host can take."""
    deadline = time.monotonic() + SIZED_WITHIN
    while True:
        try:
            return SharedMemory(name, create, size)
        except ValueError as error:
            if create:
                raise
            if time.monotonic() > deadline:
                gone = f"shared memory {name} was begun by a worker that has gone: remove /dev/shm/{name}"
                raise TimeoutError(gone) from error
            time.sleep(TICK)


_memory.BuiltinSharedMemory = _shared_memory  # type: ignore[assignment, misc]
