"""Vector indexes: `open_index(uri, model_version)` opens one, `jobs/build_index.py` builds one."""

from recsys_ray.serving.index.vector_index import VectorIndex, open_index

__all__ = ["VectorIndex", "open_index"]
