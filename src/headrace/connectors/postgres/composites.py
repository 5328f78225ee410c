"""Types that hold named or numbered values: composites, hstore and pgvector's vectors.

Grammars: Postgres documentation, "Composite Type Input and Output Syntax" and "hstore"; pgvector's
README, "Reference". Whole columns are taken apart at once (`literals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres.casts import kernel_cast, rejected, to_binary
from headrace.connectors.postgres.literals import EMPTY, split

HSTORE: Final = pa.map_(pa.string(), pa.string())
VECTOR: Final = pa.list_(pa.float32())


def split_fields(text: pa.StringArray, count: int, arrow: pa.DataType) -> Sequence[pa.StringArray]:
    """The fields of composites of `count` fields, each as a column; those of a null row are null.

    Raises:
        UnrepresentableValueError: a value has another number of fields, as after ALTER TYPE.
    """
    filled = text.fill_null(f"({',' * (count - 1)})")
    offsets, elements = split(filled, ",", null=EMPTY)
    wrong = np.flatnonzero(np.diff(offsets) != count)
    if len(wrong):
        raise rejected(text, wrong, arrow)
    return [elements.take(pa.array(np.arange(at, len(elements), count))) for at in range(count)]


def to_map(text: pa.StringArray) -> pa.MapArray:
    """hstore (`"a"=>"1", "b"=>NULL`), entries in the order in which Postgres prints them."""
    enclosed = pc.binary_join_element_wise("{", text.fill_null(""), "}", "")
    offsets, elements = split(enclosed, "=,", blank="> ")
    keys, items = (elements.take(pa.array(np.arange(first, len(elements), 2))) for first in (0, 1))
    mask = text.is_null() if text.null_count else None
    starts = pa.array(offsets // 2, pa.int32())
    return pa.MapArray.from_arrays(starts, keys, items, type=HSTORE, mask=mask)


def to_floats(text: pa.StringArray) -> pa.ListArray:
    """vector and halfvec (`[1,2.5]`)."""
    offsets, elements = split(text.fill_null("[]"), ",")
    mask = text.is_null() if text.null_count else None
    values = kernel_cast(elements, pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=VECTOR, mask=mask)


def to_ewkb(text: pa.StringArray) -> pa.BinaryArray:
    """PostGIS' geometries (`0101000020E6…`), which print as EWKB in hex."""
    return to_binary(pc.binary_join_element_wise(r"\x", pc.ascii_lower(text), ""))
