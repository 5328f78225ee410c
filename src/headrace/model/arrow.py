"""What an Arrow type holds, whatever its layout: texts, bytes and lists have several each."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt


def is_text(kind: pa.DataType) -> bool:
    """Whether values are texts in UTF-8."""
    layouts = (pt.is_string, pt.is_large_string, pt.is_string_view)
    return any(is_one(kind) for is_one in layouts)


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes of any kind."""
    layouts = (pt.is_binary, pt.is_large_binary, pt.is_fixed_size_binary, pt.is_binary_view)
    return any(is_one(kind) for is_one in layouts)


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists; a map is none."""
    layouts = (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view)
    return any(is_one(kind) for is_one in (*layouts, pt.is_large_list_view))
