"""What every benchmark shares: interleaved rounds, medians, child processes, JSON reports."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import headrace
from headrace.pgoutput import KERNEL

REPORTS = Path(__file__).parent / "reports"


class Measured(NamedTuple):
    """One run: its result (mostly seconds), and its peak RSS in MiB."""

    value: Any
    peak_mib: float


def in_child(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Run `function` in a fresh process, so that peaks and caches are its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_back, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        measured = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} died: exit code {process.exitcode}") from error
    finally:
        process.join()
    return Measured(*measured)


def _report_back(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    value = function(*arguments)
    sender.send((value, _peak_mib()))


def _peak_mib() -> float:
    """Of this process since its start; ru_maxrss would know of its parent's memory too."""
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) / 1024


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    rounds: int, contestants: Mapping[str, Callable[[], Measured]]
) -> dict[str, list[Measured]]:
    """Every contestant once a round, so that noise hits them alike."""
    results: dict[str, list[Measured]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            results[name].append(run())
    return results


def median(results: list[Measured]) -> float:
    return statistics.median(result.value for result in results)


def peak(results: list[Measured]) -> int:
    return round(max(result.peak_mib for result in results))


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def write(name: str, result: Mapping[str, Any], *, keep: bool = True) -> None:
    """Print the report, and `keep` it where the docs quote it from."""
    report = {
        "benchmark": name,
        "headrace": headrace.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "kernel": "compiled" if KERNEL else "reference",
        },
        **result,
    }
    text = json.dumps(report, indent=2) + "\n"
    if keep:
        REPORTS.mkdir(exist_ok=True)
        (REPORTS / f"{name}.json").write_text(text)
    print(text, flush=True)
