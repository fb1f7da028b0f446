"""The catalogue as tensors: encoded columns of the items that a model may recommend, and how often training rows chose them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys_ray.columns import Columns
from recsys_ray.models.rows import take_rows
from recsys_ray.schema import Categorical


@dataclass(frozen=True)
class EncodedCatalogue:
    """N items that may be recommended."""

    columns: Columns
    """The item columns, in the form in which a stream yields columns."""
    frequency: torch.Tensor
    """float32 [N]: how many positive training rows have each item."""
    key: Categorical

    def __len__(self) -> int:
        return len(self.frequency)

    @property
    def table_rows(self) -> torch.Tensor:
        """int64 [N]: each item's row in the table of the item key; 0 for an item that training has never seen."""
        return self.columns[self.key.name].long()

    def position_of_row(self) -> torch.Tensor:
        """Returns the item's position in the catalogue, or -1, for each row of the item key's table: int64 [rows]."""
        positions = torch.full((self.key.num_embeddings,), -1)
        positions[self.table_rows] = torch.arange(len(self))
        positions[0] = -1
        return positions

    def take(self, positions: torch.Tensor) -> Columns:
        """Returns the columns of the items at these positions, in this order."""
        return take_rows(self.columns, positions)

    def draw(self, items: int, seed: int) -> Columns:
        """Draws items uniformly, with replacement. The seed alone decides, so a resumed run draws what the first one drew."""
        return self.take(torch.randint(len(self), (items,), generator=torch.Generator().manual_seed(seed)))

    def log_q(self, rows: int, uniform: int) -> torch.Tensor:
        """Returns log Q, the log probability that a candidate is the item, by row of the item key's table: float32 [rows].

        Of the candidates, `rows` come from training rows and `uniform` from the catalogue. An item that no training row chose
        counts as if half a row had; one that the catalogue lacks has an average share.
        """
        share = self.frequency.clamp(min=0.5) / self.frequency.sum().clamp(min=1)
        probability = (rows * share + uniform / len(self)) / (rows + uniform)
        found = torch.zeros(self.key.num_embeddings).index_add_(0, self.table_rows, probability)
        return torch.where(found > 0, found, 1 / len(self)).log()
