"""The requests of the HTTP interface and their limits, checked before any model sees them, and the answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator

MOST_ITEMS, MOST_CANDIDATES, MOST_EXCLUDED, MOST_ROWS = 100, 2000, 5000, 1000
MOST_FILTERS, MOST_COLUMNS, MOST_VALUES, LONGEST_TEXT = 16, 200, 500, 256
LARGEST_INTEGER = 2**63 - 1

ShortText = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_TEXT)]
Integer = {"type": "integer", "minimum": -LARGEST_INTEGER - 1, "maximum": LARGEST_INTEGER}
Text = {"type": "string", "maxLength": LONGEST_TEXT}
Single = {"anyOf": [Text, Integer, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]}
Several = {"type": "array", "items": Single, "maxItems": MOST_VALUES}


def checked_key(value: object) -> int | str:
    """Returns an id: an integer of 64 bits, or a text that is not empty. Raises ValueError for anything else."""
    _check_single(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError("wants an integer or a text")
    return value


def checked_row(value: object) -> dict[str, Any]:
    """Returns columns and their values: single ones, or lists of them. Raises ValueError naming the first that cannot be."""
    if not isinstance(value, dict) or len(value) > MOST_COLUMNS:
        raise ValueError(f"wants an object of at most {MOST_COLUMNS} columns")
    for name, one in value.items():
        if len(name) > LONGEST_TEXT:
            raise ValueError(f"a column's name is longer than {LONGEST_TEXT} characters")
        try:
            checked_value(one)
        except ValueError as error:
            raise ValueError(f"column {name!r} {error}") from error
    return value


def checked_value(value: object) -> Any:
    """Returns the value of a column. Raises ValueError for one that no column has."""
    if not isinstance(value, list):
        _check_single(value)
        return value
    if len(value) > MOST_VALUES:
        raise ValueError(f"has more than {MOST_VALUES} values")
    for one in value:
        _check_single(one)
    return value


def _check_single(value: object) -> None:
    match value:
        case str() if len(value) > LONGEST_TEXT:
            raise ValueError(f"holds a text of more than {LONGEST_TEXT} characters")
        case str() if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("holds half of a surrogate pair, which is no text")
        case int() if not -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER:
            raise ValueError("holds an integer of more than 64 bits")
        case float() if value in (float("inf"), float("-inf")):
            raise ValueError("holds an infinite number")
        case None | str() | int() | float():
            return
        case _:
            raise ValueError("holds neither a text, a number, a boolean, null, nor a list of these")


KeyValue = Annotated[int | str, PlainValidator(checked_key), WithJsonSchema({"anyOf": [Integer, Text | {"minLength": 1}]})]
Row = Annotated[
    dict[str, Any],
    PlainValidator(checked_row),
    WithJsonSchema(
        {"type": "object", "additionalProperties": {"anyOf": [*Single["anyOf"], Several]}, "maxProperties": MOST_COLUMNS}
    ),
]
FilterValue = Annotated[Any, PlainValidator(checked_value), WithJsonSchema({"anyOf": [*Single["anyOf"], Several]})]


class Strict(BaseModel):
    """A JSON object without fields that nobody asked for."""

    model_config = ConfigDict(extra="forbid")


class ItemFilter(Strict):
    """A condition on an item's column. An item whose value is null meets none.

    `contains` finds a value in a list, or a part of a text whatever its case; `in` takes a list of values.
    """

    column: ShortText
    op: Literal["=", "!=", "<", "<=", ">", ">=", "in", "contains"] = "="
    value: FilterValue


class UserRequest(Strict):
    """A user: an id, features, or both; features that are given win over those that are stored of the user."""

    user: KeyValue | None = None
    features: Row = Field(default={}, description="Raw user and context columns; null, or left out, stands for unknown.")


class RecommendRequest(UserRequest):
    """A question for the k best items."""

    k: int = Field(default=10, ge=1, le=MOST_ITEMS, strict=True)
    candidates: int = Field(default=500, ge=1, le=MOST_CANDIDATES, strict=True, description="Items that retrieval finds.")
    where: list[ItemFilter] = Field(default=[], max_length=MOST_FILTERS, description="Conditions that every item must meet.")
    exclude: list[KeyValue] = Field(default=[], max_length=MOST_EXCLUDED, description="Ids of items that must not be returned.")
    columns: list[ShortText] = Field(default=[], max_length=32, description="Item columns to return with each item.")

    @model_validator(mode="after")
    def check_candidates(self) -> RecommendRequest:
        """Raises ValueError where fewer candidates than items are asked for."""
        if self.candidates < self.k:
            raise ValueError(f"candidates is {self.candidates}, which is less than k ({self.k})")
        return self


class RankRequest(UserRequest):
    """A question for the ranking model's scores: of `items` for a user, or of whole `rows` of raw columns."""

    items: list[KeyValue] = Field(default=[], max_length=MOST_ROWS)
    rows: list[Row] = Field(default=[], max_length=MOST_ROWS)

    @model_validator(mode="after")
    def check_either(self) -> RankRequest:
        """Raises ValueError unless there is one of the two."""
        if bool(self.items) == bool(self.rows) or (self.rows and (self.user is not None or self.features)):
            raise ValueError("wants either items, with a user or features, or rows alone")
        return self


class ServedVersions(BaseModel):
    """The models that made an answer, which were put into service together."""

    release: str
    retriever: str
    ranker: str
    index: str


class RecommendedItem(BaseModel):
    """An item with the scores of both stages."""

    item: int | str
    retrieval_score: float | None = Field(description="The dot product of user and item; null for a popular item.")
    ranking_score: float | None = Field(description="The ranking model's score; null for a popular item.")
    columns: dict[str, Any] = {}


class RecommendAnswer(BaseModel):
    """The best items, best first."""

    items: list[RecommendedItem]
    strategy: Literal["personal", "popular"] = Field(description="popular: nothing is known of the user.")
    ignored: list[str] = Field(description="Names of features that no model reads.")
    versions: ServedVersions


class RankAnswer(BaseModel):
    """A score for each item or row, in their order."""

    scores: list[float | None] = Field(description="null for an item that is not in the catalogue.")
    ignored: list[str]
    versions: ServedVersions


class Problem(BaseModel):
    """The reason why there is no answer."""

    error: str
    details: list[str] = []


class HistoryRequest(Strict):
    """A question for what a user has seen and liked."""

    user: KeyValue
