"""Makes JSON that every reader takes: Python's own `NaN` and `Infinity` are no JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def finite_or_null(value: Any) -> Any:
    """Returns a value of JSON with null in the place of every number that is not finite."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite_or_null(one) for key, one in value.items()}
        case list() | tuple():
            return [finite_or_null(one) for one in value]
    return value


def json_text(value: Any) -> str:
    """Returns the text of a file that people read too; a number that is not finite is null."""
    return json.dumps(finite_or_null(value), indent=2, allow_nan=False) + "\n"
