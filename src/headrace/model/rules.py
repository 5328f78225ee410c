"""What a user wants done to each row on its way: columns, names, masks, filters, expectations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class MaskKind(Enum):
    """How a column's values are made unreadable; null stays null."""

    SHA256 = "sha256"  # lower-case hex of the value's text in UTF-8
    HMAC = "hmac"  # HMAC-SHA-256 with a secret key, lower-case hex
    REDACT = "redact"  # ***
    TRUNCATE = "truncate"  # the first characters only
    NULL = "null"


@dataclass(frozen=True)
class Mask:
    """`key` is the secret of HMAC, and never printed; `length` the characters of TRUNCATE."""

    kind: MaskKind
    key: str = field(default="", repr=False)
    length: int = 0


class OnBreach(Enum):
    """What becomes of a row for which an expectation is not true."""

    WARN = "warn"  # it is applied, and counted
    QUARANTINE = "quarantine"  # it is parked instead
    FAIL = "fail"  # the table stops, nothing of the batch is applied


@dataclass(frozen=True)
class Expectation:
    """A rule that rows should fulfil; a null result counts as fulfilled, as in SQL's CHECK."""

    name: str
    sql: str
    on_breach: OnBreach = OnBreach.WARN


@dataclass(frozen=True)
class RowRules:
    """In this order: `where` and `expectations` see the source's columns and values, then columns
    are chosen, masked and renamed. `rename` and `masks` are by the source's names.

    `newest_by` names the column whose greatest value decides between rows of one key.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    where: str | None = None
    expectations: tuple[Expectation, ...] = ()
    newest_by: str | None = None
