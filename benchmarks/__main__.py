"""`python -m benchmarks [NAME…]`: run all benchmarks, or those named."""

import importlib
import sys

NAMES = ("capture", "snapshot", "apply", "latency")

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()
