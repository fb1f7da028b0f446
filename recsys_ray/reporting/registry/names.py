"""Names of registered models, and the aliases by which versions are found."""

from __future__ import annotations

import re

CANDIDATE_ALIAS = "candidate"
"""The alias of the version that was registered last, until it is promoted or another one is registered."""
CHAMPION_ALIAS = "champion"
"""The alias of the version that is served."""
UNITY_CATALOG = ("databricks-uc", "uc:")
"""The beginnings of the URI of a registry in Unity Catalog."""
NAME_PART = re.compile(r"[^\s./:@\\]+")


def check_registered_name(name: str, registry_uri: str) -> None:
    """Raises ValueError for a name that the registry at this URI would refuse; it asks nobody."""
    if registry_uri.startswith(UNITY_CATALOG):
        parts = name.split(".")
        if len(parts) != 3 or not all(map(NAME_PART.fullmatch, parts)):
            raise ValueError(
                f"model name {name!r}: Unity Catalog ({registry_uri}) wants three parts, catalog.schema.model, such as "
                "main.recsys.ranker, without spaces or any of / : @ \\"
            )
    elif not name.strip() or any(one in name for one in "/:@"):
        raise ValueError(f"model name {name!r}: a registered model wants a name without any of / : @")
