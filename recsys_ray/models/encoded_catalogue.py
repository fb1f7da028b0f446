"""The items a retrieval model may recommend, as tensors: their columns encoded, and how often training rows chose them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.schema import Categorical


@dataclass(frozen=True)
class Catalogue:
    """N items. `columns` as a stream yields them; `frequency` float32 [N], of positive training rows."""

    columns: Columns
    frequency: torch.Tensor
    key: Categorical
    group_names: tuple[str, ...] = ()
    """What the rows of the table of the column that users are grouped by stand for."""

    def __len__(self) -> int:
        return len(self.frequency)

    @property
    def table_rows(self) -> torch.Tensor:
        """int64 [N]: of the item key; 0 where training has never seen the item."""
        return self.columns[self.key.name].long()

    def position_of_row(self) -> torch.Tensor:
        """int64 [rows of the key's table]: the item's place in the catalogue, or -1."""
        positions = torch.full((self.key.num_embeddings,), -1)
        positions[self.table_rows] = torch.arange(len(self))
        positions[0] = -1
        return positions

    def take(self, positions: torch.Tensor) -> Columns:
        """The columns of these items, in this order."""
        taken: Columns = {}
        for name, values in self.columns.items():
            if name.endswith(LENGTHS):
                continue
            lengths = self.columns.get(name + LENGTHS)
            if lengths is None:
                taken[name] = values[positions]
                continue
            starts = torch.cumsum(lengths, 0) - lengths
            kept = lengths[positions].long()
            within = torch.arange(int(kept.sum())) - torch.repeat_interleave(torch.cumsum(kept, 0) - kept, kept)
            taken |= {name: values[torch.repeat_interleave(starts[positions], kept) + within], name + LENGTHS: lengths[positions]}
        return taken

    def draw(self, items: int, seed: int) -> Columns:
        """Uniformly, with replacement. The seed decides alone: a resumed run draws what the first one drew."""
        return self.take(torch.randint(len(self), (items,), generator=torch.Generator().manual_seed(seed)))

    def log_q(self, rows: int, uniform: int) -> torch.Tensor:
        """float32 [rows of the key's table]: log probability that one candidate is the item, where `rows` of them come from
        training rows and `uniform` from the catalogue. An item that no training row chose counts as if half a row had; one that
        the catalogue lacks has an average share."""
        share = self.frequency.clamp(min=0.5) / self.frequency.sum().clamp(min=1)
        probability = (rows * share + uniform / len(self)) / (rows + uniform)
        found = torch.zeros(self.key.num_embeddings).index_add_(0, self.table_rows, probability)
        return torch.where(found > 0, found, 1 / len(self)).log()
