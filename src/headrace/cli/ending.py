"""How a command's process ends: with its exit code, whatever libraries leave running."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final, NoReturn

CANNOT_PRINT: Final = 1
HINT: Final = "hint: make room where it goes, or send it elsewhere"


def ending_process(command: Callable[[], object]) -> NoReturn:
    """Call `command`, which ends with SystemExit, and end the process once all is printed.

    At an interpreter's own end the destructors of DuckDB, Arrow and polars run beside threads of
    theirs, and were seen to abort ("terminate called without an active exception"): a command
    that had done its work ended with SIGABRT.
    """
    code: int | str | None = None
    try:
        try:
            command()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # the reader has read enough
        os._exit(CANNOT_PRINT)
    except OSError as error:  # commands report their own: this one comes from printing
        said = f"error: the output cannot be written: {error.strerror}\n{HINT}\n"
        os.write(2, said.encode())
        os._exit(CANNOT_PRINT)
    os._exit(code if isinstance(code, int) else int(code is not None))
