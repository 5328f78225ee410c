"""A target's values in the types that their source has, so that both can be compared.

What comes back equals what was written, exactly, for every column of the type that Headrace gives
it (`target_types`), but for maps (jsonb orders their entries anew) and zeros inside nested values
(jsonb has no -0.0). Where the user chose another type, a value may come back in that type's own
spelling: a string kept as uuid in lower case, as jsonb without its spaces, as char(n) padded, as
timestamptz or numeric as Postgres prints them; a number kept with another scale, an interval. Such
a value only looks different: a difference is never hidden. A value that the source's type cannot
have at all is an error, because somebody else wrote it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.connectors.postgres.casts import to_text
from headrace.connectors.postgres.json_values import from_json
from headrace.connectors.postgres.types import TypeMapping
from headrace.errors import UnrepresentableValueError
from headrace.model.arrow import is_list, is_text
from headrace.pgcopy import CopiedColumn

_INTERVAL: Final = re.compile(
    r"P(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d{1,6}))?S)?)?"
)


class IncomparableError(Exception):
    """A value that the source's type cannot have; never leaves the connector."""


@dataclass(frozen=True)
class Comparable:
    """How a column is asked for, and what its values are made to."""

    mapping: TypeMapping
    wanted: pa.DataType

    @classmethod
    def of(cls, mapping: TypeMapping, wanted: pa.DataType) -> Comparable:
        """`mapping` is the target column's own."""
        plain = _plain(wanted)
        texts = is_text(plain) or (_is_nested(plain) and not _is_nested(mapping.arrow))
        if texts and mapping.arrow != pa.string():
            mapping = replace(mapping, arrow=pa.string(), cast=to_text, native=None)
        return cls(mapping, wanted)

    def read(self, copied: CopiedColumn) -> pa.Array:
        """What a COPY gave for `mapping.select`, as `wanted`.

        Raises:
            IncomparableError: a value that `wanted` cannot have.
        """
        try:
            values = _converted(self.mapping.from_copy(copied), _plain(self.wanted))
            return _dressed(values, self.wanted)
        except (
            *(UnrepresentableValueError, pa.ArrowException, ValueError, TypeError, KeyError),
            *(ArithmeticError, AttributeError),
        ) as error:
            raise IncomparableError(str(error)) from error


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if pt.is_dictionary(kind) else kind


def _dressed(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, values)
    return values if values.type == kind else values.cast(kind)


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pt.is_nested(kind)) or is_list(kind)


def _converted(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    if values.type == wanted:
        return values
    if is_list(wanted) and is_list(values.type):
        return _list(values, wanted)
    if pt.is_string(values.type):
        return _from_text(values, wanted)
    return _cast(values, wanted)


def _list(values: pa.ListArray, wanted: pa.DataType) -> pa.Array:
    elements = _converted(values.values, wanted.value_type)
    mask = values.is_null() if values.null_count else None
    return pa.ListArray.from_arrays(values.offsets, elements, mask=mask).cast(wanted)


def _from_text(values: pa.StringArray, wanted: pa.DataType) -> pa.Array:
    if _is_nested(wanted):
        return from_json(values, wanted)
    if pt.is_time(wanted):
        moments = pc.binary_join_element_wise("1970-01-01", values, " ").cast(pa.timestamp("us"))
        return _cast(moments.cast(pa.time64("us")), wanted)
    if pt.is_duration(wanted):
        counts = [None if text is None else _microseconds(text) for text in values.to_pylist()]
        return _cast(pa.array(counts, pa.duration("us")), wanted)
    if pt.is_null(wanted) and values.null_count == len(values):
        return pa.nulls(len(values))
    return values.cast(wanted)


def _cast(values: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Arrow's cast, and back: it cuts a time of day off a date without a word."""
    found = values.cast(wanted)
    if found.type != values.type and not found.cast(values.type).equals(values):
        if not pt.is_floating(values.type):
            raise ValueError(f"{wanted} cannot hold all values of {values.type}")
        _check_floats(values, found)
    return found


def _check_floats(values: pa.Array, found: pa.Array) -> None:
    """NaN is not equal to itself."""
    back = found.cast(values.type).to_numpy(zero_copy_only=False)
    if not np.array_equal(values.to_numpy(zero_copy_only=False), back, equal_nan=True):
        raise ValueError(f"{found.type} cannot hold all values of {values.type}")


def _microseconds(text: str) -> int:
    """ISO 8601 as Postgres prints an interval; one in months has no fixed length."""
    found = _INTERVAL.fullmatch(text)
    if found is None:
        raise ValueError(f"no fixed length: {text}")
    days, hours, minutes, sign, seconds, fraction = found.groups()
    whole = ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes or 0)) * 60
    micro = int(seconds or 0) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    return whole * 1_000_000 + (-micro if sign else micro)
