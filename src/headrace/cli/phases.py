"""How a table's phase looks on a terminal."""

from __future__ import annotations

from typing import Final

from headrace.engine.table_state import Phase

_STYLES: Final = {
    Phase.STREAMING: "green",
    Phase.RETRYING: "yellow",
    Phase.HELD: "yellow",
    Phase.FAILED: "bold red",
}


def phase_style(phase: Phase) -> str:
    """The style of a phase's name; none for what is neither good nor bad."""
    return _STYLES.get(phase, "")
