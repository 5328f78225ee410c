"""The entries under `tables:`: which tables, and what is special about them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import (
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    SecretStr,
    StringConstraints,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from headrace.config.connections import Frozen
from headrace.config.names import NAME_PATTERN
from headrace.config.quantities import Positive

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
Mode = Literal["scd1", "scd2", "append"]
MetadataWord = Literal["lsn", "commit_ts", "op", "xid"]
MaskWord = Literal["sha256", "redact", "null"]

GLOB_CHARACTERS: Final = "*?["
MAX_DIGITS: Final = 38  # of a decimal of 128 bits


_DECIMAL: Final = re.compile(r"decimal\((\d+),\s*(\d+)\)", re.ASCII)


class ColumnSelection(Frozen):
    """Which columns reach the destination, and as what."""

    include: tuple[Text, ...] | None = Field(
        default=None, min_length=1, description="Only these columns."
    )
    exclude: tuple[Text, ...] | None = Field(default=None, description="All but these columns.")
    rename: dict[Text, Text] | None = Field(
        default=None, description="Per column of the source, its name at the destination."
    )
    types: dict[Text, Text] | None = Field(
        default=None,
        description="Per column of the destination, its type there, such as citext.",
    )
    read_as: dict[Text, Text] | None = Field(
        default=None,
        alias="as",
        description="Per column of a Postgres source, how its values are read: text, which holds "
        "all of them, or decimal(p,s).",
    )

    @field_validator("read_as")
    @classmethod
    def _is_known(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        for column, word in (value or {}).items():
            digits = _DECIMAL.fullmatch(word)
            fits = digits is not None and 0 <= int(digits[2]) <= int(digits[1]) <= MAX_DIGITS
            if word != "text" and not (fits and word[8] != "0"):
                raise ValueError(f"expected text or decimal(p,s), p up to 38, for {column}")
        return value

    @model_validator(mode="after")
    def _says_it_once(self) -> Self:
        if self.include is not None and self.exclude is not None:
            raise ValueError("include names the only columns, so exclude has none: keep one")
        for name, times in Counter((self.rename or {}).values()).items():
            if times > 1:
                raise ValueError(f"rename gives {name} to {times} columns")
        return self


class MaskRule(Frozen):
    """A mask that needs a parameter; exactly one is given."""

    hmac: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="HMAC-SHA-256 with this secret key, in hex; ${NAME} reads the environment.",
    )
    truncate: Positive | None = Field(
        default=None, description="Only so many characters, from the first on."
    )

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.hmac is None) == (self.truncate is None):
            raise ValueError("expected hmac or truncate")
        return self


def _mask_form(value: Any) -> str:
    return "[rule]" if isinstance(value, dict | MaskRule) else "[word]"


_WORDS: Final = WithJsonSchema({"enum": [*get_args(MaskWord), None]})  # YAML's null is the word
MaskForm = Annotated[
    Annotated[MaskWord, Tag("[word]"), _WORDS] | Annotated[MaskRule, Tag("[rule]")],
    Discriminator(_mask_form),
]


class ExpectationEntry(Frozen):
    """A rule that rows should fulfil; bare SQL stands for one that warns."""

    sql: Text = Field(description="SQL over the source's columns; null counts as fulfilled.")
    on_breach: Literal["warn", "quarantine", "fail"] = Field(
        default="warn",
        description="warn: the row is applied, and counted; quarantine: it is parked; "
        "fail: the table stops.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_bare_sql(cls, value: Any) -> Any:
        return {"sql": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bare = {"type": "string", "description": "SQL; a row that breaks it is counted."}
        return {"anyOf": [bare, handler.resolve_ref_schema(handler(core_schema))]}


class TableEntry(Frozen):
    """Tables of the source, by name or glob, and what is special about them."""

    source: Text = Field(description="schema.table at the source; * ? and [ ] are globs.")
    name: Text | None = Field(default=None, description="schema.table at the destination.")
    mode: Mode | None = Field(
        default=None,
        description="scd1: current state (default); scd2: history; append: every change as a row.",
    )
    track: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="In mode scd2, the columns whose changes make a version; default: all.",
    )
    metadata: tuple[MetadataWord, ...] | None = Field(
        default=None,
        description="What each row tells of the change that brought it, as columns _lsn, "
        "_commit_ts, _op and _xid.",
    )
    cluster_by: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="Columns by which rows are ordered where a Delta table is compacted.",
    )
    partition_by: tuple[Text, ...] | None = Field(
        default=None, min_length=1, description="Columns by which a Delta table is partitioned."
    )
    key: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="Columns that identify a row; default: the primary key, else the replica "
        "identity's index. A Delta source has neither: name them.",
    )
    on_delete: Literal["delete", "mark", "ignore"] | None = Field(
        default=None,
        description="What a delete at the source does to the row at the destination: delete "
        "(default); mark: it stays, with the time in _deleted_at; ignore.",
    )
    columns: ColumnSelection | None = Field(
        default=None, description="Columns to include or exclude, their names and types."
    )
    where: Text | None = Field(
        default=None,
        description="Only rows for which this SQL over the source's columns is true.",
    )
    mask: dict[Text, MaskForm] | None = Field(
        default=None,
        description="Per column of the source, how its values are masked: sha256, redact (***), "
        "null, {hmac: key} or {truncate: characters}.",
    )
    expect: dict[Name, ExpectationEntry] | None = Field(
        default=None,
        description="By name, SQL that should be true for each row, or {sql, on_breach}.",
    )
    newest_by: Text | None = Field(
        default=None,
        description="Column whose greatest value decides between rows of one key; without it "
        "they go to quarantine.",
    )
    take_over: bool | None = Field(
        default=None,
        description="Whether a table that holds somebody else's rows may be replaced.",
    )
    exclude: bool = Field(default=False, description="Leave these tables out.")

    @model_validator(mode="before")
    @classmethod
    def _accept_a_bare_name(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @field_validator("source", "name")
    @classmethod
    def _has_a_schema(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(".")):
            raise ValueError("expected schema.table, such as public.customers or public.*")
        return value

    @field_validator("key")
    @classmethod
    def _names_each_column_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("names a column twice")
        return value

    @model_validator(mode="after")
    def _name_is_for_one_table(self) -> Self:
        if self.name is not None and self.is_glob:
            raise ValueError("name is for one table, but source is a glob")
        return self

    @property
    def is_glob(self) -> bool:
        return any(character in self.source for character in GLOB_CHARACTERS)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        bare = {"type": "string", "description": "schema.table at the source, or a glob."}
        return {"anyOf": [bare, handler.resolve_ref_schema(handler(core_schema))]}
