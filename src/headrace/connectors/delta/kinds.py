"""What a table's rows mean: rows of two modes do not go together in one table.

A table says so in a property, so that a changed mode is refused before a row is written.
"""

from __future__ import annotations

from headrace.connectors.delta.plans import KIND, PIPELINE
from headrace.connectors.delta.state import TableState
from headrace.errors import UnsuitableTableError
from headrace.model import Mode, OnDelete, Shape, TableId


def kind_of(shape: Shape) -> str:
    """What a table's rows mean, for its properties: rows of two kinds do not go together."""
    kept = shape.on_delete is not OnDelete.DELETE
    return f"{shape.mode.value}, {shape.on_delete.value}" if kept else shape.mode.value


def kind_made(state: TableState) -> str:
    """The same of a table that stands; tables from before this was noted hold the current state."""
    return state.configuration.get(KIND, Mode.SCD1.value)


def mode_of(state: TableState) -> Mode:
    return Mode(kind_made(state).partition(",")[0])


def require_kind(state: TableState, name: TableId, pipeline: str, shape: Shape) -> None:
    """Refuse to write rows of one kind to a table of another, where the pipeline made it.

    Raises:
        UnsuitableTableError: it was made in another mode.
    """
    if state.configuration.get(PIPELINE) == pipeline:
        require_nothing_lost(state, name, shape)
        if kind_made(state) != kind_of(shape):
            hint = f"headrace resync {name} makes it anew, or set its mode back"
            raise _of_another_kind(state, name, shape, hint)


def require_nothing_lost(state: TableState, name: TableId, shape: Shape) -> None:
    """Refuse to make a table anew in another mode that tells what its source no longer does; one of
    the current state can be.

    Raises:
        UnsuitableTableError: it does.
    """
    if kind_made(state) not in (Mode.SCD1.value, kind_of(shape)):
        hint = "set it back; or move the table away, or give it another name:, and it begins anew"
        raise _of_another_kind(state, name, shape, hint)


def _of_another_kind(
    state: TableState, name: TableId, shape: Shape, hint: str
) -> UnsuitableTableError:
    what = f"was made in mode {kind_made(state)}, and is to be kept in mode {kind_of(shape)}"
    return UnsuitableTableError(f"{name} {what}", hint=hint, table=str(name))
