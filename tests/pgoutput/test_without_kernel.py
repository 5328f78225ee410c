"""Where the kernel was not built, the package still works."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_KERNEL = """
import sys
sys.modules["headrace.pgoutput._kernel"] = None  # what import makes of a missing module
import headrace.pgoutput as pgoutput
assert not pgoutput.KERNEL
assert pgoutput.Decoder is pgoutput.ReferenceDecoder
decoder = pgoutput.Decoder()
decoder.push([])
print(decoder.take().batches)
"""


def test_the_reference_takes_over_where_the_kernel_is_missing() -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_KERNEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
