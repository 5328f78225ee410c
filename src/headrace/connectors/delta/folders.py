"""A lake of folders: its tables lie at `<location>/<schema>/<table>`, whoever made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.connectors.delta.discovery import folder_of, tables_in
from headrace.log.storage import Storage, open_storage
from headrace.model import TableId


@dataclass(frozen=True)
class Site:
    """Where one table lies, for our own reading and writing, and the options for deltalake's."""

    storage: Storage
    options: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Folders:
    """Folders below a path or an object store's URL."""

    location: str
    options: Mapping[str, str] = field(repr=False)

    @property
    def storage(self) -> Storage:
        return open_storage(self.location, self.options)

    def tables(self) -> list[TableId]:
        return tables_in(self.storage)

    def reading(self, name: TableId) -> Site:
        """Raises DestinationError where there can be no folder of this name."""
        path = f"{self.location}/{folder_of(name)}"
        return Site(open_storage(path, self.options), self.options)

    def writing(self, name: TableId) -> Site:
        """As `reading`: one account is good for both."""
        return self.reading(name)
