"""Making a column's values unreadable on their way. Null stays null.

sha256 and hmac are of the UTF-8 of the value's text: a string's own, a binary value's bytes, and
for every other type the text that Arrow casts it to (`true`, `-3`, `1.50`, `2026-01-31`,
`2026-01-31 12:00:00.000000Z`). So equal values stay equal, and a join on a masked column still
works.
"""

from __future__ import annotations

import hashlib
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.sandbox import Sandbox
from headrace.errors import ConfigError
from headrace.model import Mask, MaskKind
from headrace.model.arrow import is_binary

REDACTED: Final = "***"
JOINABLE: Final = frozenset({MaskKind.SHA256, MaskKind.HMAC})  # different values stay different
_SAMPLE: Final = 1024  # values; hashing costs three times what finding the distinct ones does
_BLOCK: Final = 64  # bytes that SHA-256 takes at a time; RFC 2104, section 2


def masked_type(mask: Mask, kind: pa.DataType, what: str) -> pa.DataType:
    """The type that a masked column has: text, but for NULL, which keeps the column's own.

    Raises:
        ConfigError: the values have no text to mask; `what` says of which column.
    """
    if mask.kind is MaskKind.NULL:
        return kind
    hashed = mask.kind in JOINABLE and not (is_binary(kind) or _has_text(kind))
    cut = mask.kind is MaskKind.TRUNCATE and not _has_text(kind)
    if hashed or cut:
        raise ConfigError(
            f"{what}: {mask.kind.value} needs values with a text, not {kind}",
            hint='use redact or "null", or exclude the column',
        )
    return pa.string()


def masked(values: pa.ChunkedArray, mask: Mask, sandbox: Sandbox) -> pa.ChunkedArray:
    """The values under a mask, as `masked_type` says."""
    match mask.kind:
        case MaskKind.NULL:
            return pa.chunked_array([pa.nulls(len(values), values.type)])
        case MaskKind.REDACT:
            return pc.if_else(pc.is_valid(values), REDACTED, pa.scalar(None, pa.string()))
        case MaskKind.TRUNCATE:
            return pc.utf8_slice_codeunits(_text(values), 0, mask.length)
        case MaskKind.SHA256:
            return _hashed("sha256(v)", values, sandbox)
        case MaskKind.HMAC:
            return _hashed(_hmac_sha256("v", mask.key.encode()), values, sandbox)


def _hashed(expression: str, values: pa.ChunkedArray, sandbox: Sandbox) -> pa.ChunkedArray:
    """Each value's hash, computed once per distinct value where values repeat."""
    if _repeats(values):
        distinct = values.combine_chunks().dictionary_encode()
        content = _content(pa.chunked_array([distinct.dictionary]))
        [hashes] = sandbox.select([expression], pa.table({"v": content}))
        return hashes.take(pa.chunked_array([distinct.indices]))
    [hashes] = sandbox.select([expression], pa.table({"v": _content(values)}))
    return hashes


def _repeats(values: pa.ChunkedArray) -> bool:
    """Whether the first values repeat so often that the others are likely to."""
    sample = values.slice(0, _SAMPLE)
    known = len(sample) == _SAMPLE and not pa.types.is_dictionary(values.type)
    return known and pc.count_distinct(sample).as_py() * 4 < _SAMPLE


def _content(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes that are hashed."""
    return (values if is_binary(values.type) else _text(values)).cast(pa.binary())


def _hmac_sha256(value: str, key: bytes) -> str:
    """HMAC as SQL, RFC 2104: H(K XOR opad, H(K XOR ipad, text)); the key stands in no error."""
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK else key).ljust(_BLOCK, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in padded).hex() for pad in (0x36, 0x5C))
    return f"sha256(unhex('{outer}') || unhex(sha256(unhex('{inner}') || {value})))"


def _text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.string())


def _has_text(kind: pa.DataType) -> bool:
    if is_binary(kind):
        return False
    try:
        pa.nulls(0, kind).cast(pa.string())
    except pa.ArrowNotImplementedError:
        return False
    return True
