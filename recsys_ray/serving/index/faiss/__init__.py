"""The vector index in faiss, in the memory of one machine: index.py opens and searches it, writer.py replaces it.

PATH/index.json                     what is served: written last, with the size and checksum of every file below
PATH/items_<version>_<name>/        a version of the index; the one before stays, for readers that have opened it
    vectors.faiss                   every vector, for exact scores
    lists.faiss                     inverted lists of 4-bit codes (from EXACT_BELOW items on)
    catalogue.arrow                 the raw columns, in the same order
    conditions/                     the raw columns again, as a LanceDB table: it evaluates the SQL conditions

The files are mapped into memory, so that all processes of a machine share them, and must be on a local or shared file system.
"""

from recsys_ray.serving.index.faiss.index import open_index
from recsys_ray.serving.index.faiss.writer import write_index

__all__ = ["open_index", "write_index"]
