"""The logical replication protocol: bytes in, events and columns out; no I/O.

`Decoder` is the compiled kernel, or the plain `ReferenceDecoder` where it was not built.
"""

from typing import TYPE_CHECKING, Final

from headrace.pgoutput.columns import (
    Decoded,
    RawBatch,
    RawColumn,
    Streamed,
    TransactionEnd,
    Transactions,
)
from headrace.pgoutput.messages import Message, Relation, RelationColumn, parse
from headrace.pgoutput.reference import ReferenceDecoder

if TYPE_CHECKING:
    from headrace.pgoutput.reference import ReferenceDecoder as Decoder
else:
    try:
        from headrace.pgoutput._kernel import Decoder
    except ImportError:  # installed without a compiler
        Decoder = ReferenceDecoder

KERNEL: Final[bool] = Decoder is not ReferenceDecoder

__all__ = [
    "KERNEL",
    "Decoded",
    "Decoder",
    "Message",
    "RawBatch",
    "RawColumn",
    "ReferenceDecoder",
    "Relation",
    "RelationColumn",
    "Streamed",
    "TransactionEnd",
    "Transactions",
    "parse",
]
