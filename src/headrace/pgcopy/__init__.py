"""COPY's binary format: bytes in, Arrow columns out; no I/O.

`Decoder` is the compiled kernel, or the plain `ReferenceDecoder` where it was not built.
"""

from typing import TYPE_CHECKING, Final

from headrace.pgcopy.columns import CopiedColumn, CopiedRows, Kind, Wanted
from headrace.pgcopy.reference import ReferenceDecoder

if TYPE_CHECKING:
    from headrace.pgcopy.reference import ReferenceDecoder as Decoder
else:
    try:
        from headrace.pgcopy._kernel import Decoder
    except ImportError:  # installed without a compiler
        Decoder = ReferenceDecoder

KERNEL: Final[bool] = Decoder is not ReferenceDecoder

__all__ = [
    "KERNEL",
    "CopiedColumn",
    "CopiedRows",
    "Decoder",
    "Kind",
    "ReferenceDecoder",
    "Wanted",
]
