"""`python -m benchmarks [NAME…] [--size ROWS]`: run all benchmarks, or those named."""

import argparse
import importlib

NAMES = (
    *("capture", "snapshot", "apply", "merges", "upkeep", "latency"),
    *("limits", "idle_database", "large_transaction", "large_apply"),
    *("reverse_load", "reverse_upsert", "reverse_latency", "reverse_merge_or_rebuild"),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    parser.add_argument("--size", type=int, help="rows, where a benchmark can do with others")
    given = parser.parse_args()
    for name in given.names or NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        module.main(given.size) if given.size else module.main()
