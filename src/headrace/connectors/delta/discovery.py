"""Where tables lie below a location: `<location>/<schema>/<table>`, for writers and readers."""

from __future__ import annotations

import re
from typing import Final

from headrace.connectors.delta.checkpoints import LOG
from headrace.errors import DestinationError
from headrace.log.storage import Storage
from headrace.model import TableId

# In the name of a folder these lead out of it, or the Delta libraries decode or refuse them, so
# that nobody could read the table.
_UNREADABLE: Final = re.compile(r"[/\\%\[\]^|\0]|\A\.\.?\Z")


def folder_of(name: TableId) -> str:
    """A table's folder below the location.

    Raises:
        DestinationError: the name cannot be that of a folder that readers of Delta find.
    """
    if any(_UNREADABLE.search(part) for part in (name.schema, name.name)):
        raise DestinationError(
            f"table {name} cannot be a folder of a lake by this name",
            hint="give it another `name:` in headrace.yaml, or exclude it",
            table=str(name),
        )
    return f"{name.schema}/{name.name}"


def tables_in(storage: Storage) -> list[TableId]:
    """The Delta tables below the storage's root, whoever made them."""
    return sorted(
        TableId(schema, table)
        for schema in storage.folders("")
        for table in storage.folders(schema)
        if LOG in storage.folders(f"{schema}/{table}")
    )
