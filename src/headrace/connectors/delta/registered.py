"""A lake of registered tables: a Unity Catalog tells where each lies, and lends credentials for it.

A table that the catalog lacks is registered, as an external one, before its first rows are written:
only then are there credentials for its folder. Managed tables are refused: their commits are the
catalog's own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.connectors.delta.discovery import folder_of
from headrace.connectors.delta.folders import Site
from headrace.connectors.delta.leased import LeasedOptions, LeasedStorage
from headrace.connectors.delta.places import Locator, Place
from headrace.connectors.delta.schema import delta_schema
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.connectors.delta.unity import READ_WRITE, Leased, Registration, UnityCatalog
from headrace.errors import (
    DestinationError,
    DestinationUnavailableError,
    ObjectMissingError,
    SourceError,
    SourceUnavailableError,
    TableNotFoundError,
    UnsuitableTableError,
)
from headrace.log.storage import check_put_if_absent
from headrace.model import Checkpoint, TableFormat, TableId, TableSchema

# Unity Catalog keeps names in lower case, and refuses these characters in them.
_UNFIT: Final = re.compile(r"[\s./\x00-\x1f\x7f]")

# ColumnTypeName of api/all.yaml, and the SQL text, of Delta's primitive types.
_TYPES: Final = {
    "boolean": ("BOOLEAN", "boolean"),
    "byte": ("BYTE", "tinyint"),
    "short": ("SHORT", "smallint"),
    "integer": ("INT", "int"),
    "long": ("LONG", "bigint"),
    "float": ("FLOAT", "float"),
    "double": ("DOUBLE", "double"),
    "date": ("DATE", "date"),
    "timestamp": ("TIMESTAMP", "timestamp"),
    "timestamp_ntz": ("TIMESTAMP_NTZ", "timestamp_ntz"),
    "string": ("STRING", "string"),
    "binary": ("BINARY", "binary"),
}
_DECIMAL: Final = re.compile(r"decimal\((\d+),(\d+)\)")


@contextlib.contextmanager
def _destination_errors(name: object) -> Iterator[None]:
    """What the catalog answers, as errors of a destination; what it lacks is missing."""
    try:
        yield
    except TableNotFoundError as error:
        raise ObjectMissingError(error.message, hint=error.hint, path=str(name)) from error
    except SourceUnavailableError as error:
        raise DestinationUnavailableError(error.message, hint=error.hint) from error
    except SourceError as error:
        raise DestinationError(error.message, hint=error.hint) from error


@dataclass(frozen=True)
class Registered:
    """The tables of a catalog; new ones lie at `<storage_root>/<schema>/<table>`."""

    catalog: UnityCatalog
    storage_root: str | None = None

    def tables(self) -> list[TableId]:
        """Raises DestinationError where the catalog refuses, or does not answer."""
        with _destination_errors(self.catalog.name):
            return self.catalog.tables()

    def reading(self, name: TableId) -> Site:
        """A table as whoever may read it finds it; nothing is asked yet."""
        return _site(name, self.catalog.locator(name))

    def writing(self, name: TableId) -> Site:
        """A table as its one writer finds it, empty until it is registered; nothing is asked yet.

        Its storage raises DestinationError where the catalog can have no such table, or refuses.
        """

        def lease() -> tuple[Place, float]:
            _require_name(name)
            found = self.catalog.registration(name)
            _require_external_delta(found)
            return self.catalog.lend(found, READ_WRITE)

        return _site(name, Leased(lease))

    def registration(self, name: TableId) -> Registration | None:
        """What the catalog says of a table that could be written; None where there is none yet.

        Raises:
            UnsuitableTableError: it is none that can be written from outside.
            DestinationError: there can be none, or the catalog refuses.
        """
        _require_name(name)
        try:
            with _destination_errors(name):
                found = self.catalog.registration(name)
        except ObjectMissingError:
            return None
        _require_external_delta(found)
        return found

    def url_of_new(self, name: TableId) -> str:
        """Where a table is to lie that is yet to be registered.

        Raises:
            DestinationError: nobody has said where.
        """
        if self.storage_root is None:
            raise DestinationError(
                f"{self.catalog.full_name(name)} is not in the catalog yet, and the connection has "
                "no storage_root to make it below",
                hint="storage_root: s3://bucket/folder, a folder of an external location that no "
                "managed storage overlaps; or register the table first",
                table=str(name),
            )
        root = self.storage_root
        if "://" not in root:
            root = Path(root).absolute().as_uri()
        return f"{root.rstrip('/')}/{folder_of(name)}"

    def register(self, name: TableId, schema: TableSchema, partition_by: Sequence[str]) -> bool:
        """See to it that the catalog has the table; True if it was lacking.

        Raises:
            DestinationError: nobody has said where it is to lie, or the catalog refuses.
        """
        if self.registration(name) is not None:
            return False
        url = self.url_of_new(name)
        try:
            with _destination_errors(name):
                self.catalog.create(name, url, columns_of(schema, partition_by))
        except ObjectMissingError as error:
            hint = f"CREATE SCHEMA {self.catalog.name}.{name.schema}"
            raise DestinationError(error.message, hint=hint, table=str(name)) from error
        return True

    def require_schema(self, schema: str) -> None:
        """Raises DestinationError where there is no such schema, or the catalog refuses."""
        try:
            with _destination_errors(schema):
                self.catalog.require_schema(schema)
        except ObjectMissingError as error:
            hint = f"CREATE SCHEMA {self.catalog.name}.{schema}"
            raise DestinationError(error.message, hint=hint) from error


class RegisteredTable(MergeOnReadTable):
    """A table that is registered before its first rows are written."""

    def __init__(self, lake: Registered, *place: Any, layout: TableFormat, **more: Any) -> None:
        super().__init__(*place, layout=layout, **more)
        self._lake = lake
        self._partition_by = layout.partition_by

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """As every load; and a store that keeps no commit safe is refused before the first."""
        if self._lake.register(self.name, schema, self._partition_by):
            check_put_if_absent(self.storage)
        super().load(schema, files, at)


def _site(name: TableId, locate: Locator) -> Site:
    def place() -> Place:
        with _destination_errors(name):
            return locate()

    return Site(LeasedStorage(place), LeasedOptions(place))


def _require_name(name: TableId) -> None:
    for part in (name.schema, name.name):
        if part != part.lower() or _UNFIT.search(part):
            raise DestinationError(
                f"a Unity Catalog can have no table {name}: its names are in lower case, without "
                "spaces, dots and slashes",
                hint="give it another `name:` in headrace.yaml, or exclude it",
                table=str(name),
            )


def _require_external_delta(found: Registration) -> None:
    if found.format != "DELTA":
        what = f"is registered as {found.format or found.kind or 'something else'}, not as Delta"
    elif found.kind != "EXTERNAL":
        what = f"is a {found.kind} table, whose commits the catalog's own engines make"
    elif not found.url:
        what = "has no storage location"
    else:
        return
    raise UnsuitableTableError(
        f"{found.name} {what}: Headrace writes external Delta tables",
        hint="drop it there, or give the table another `name:` in headrace.yaml, and Headrace "
        "makes an external one",
        table=found.name,
    )


# -- columns ---------------------------------------------------------------------------------------


def columns_of(schema: TableSchema, partition_by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A table's columns as ColumnInfo of api/all.yaml; `type_json` is a field of Delta's schema."""
    fields = json.loads(delta_schema(schema))["fields"]
    return [_column(field, at, partition_by) for at, field in enumerate(fields)]


def _column(field: dict[str, Any], position: int, partition_by: Sequence[str]) -> dict[str, Any]:
    name, kind = field["name"], field["type"]
    column = {
        "name": name,
        "type_text": _text(kind),
        "type_json": json.dumps(field, separators=(",", ":"), ensure_ascii=False),
        "type_name": _name(kind),
        "position": position,
        "nullable": field["nullable"],
    }
    decimal = _DECIMAL.fullmatch(kind) if isinstance(kind, str) else None
    if decimal:
        column |= {"type_precision": int(decimal[1]), "type_scale": int(decimal[2])}
    if name in partition_by:
        column["partition_index"] = list(partition_by).index(name)
    return column


def _name(kind: Any) -> str:
    if not isinstance(kind, str):
        return str(kind["type"]).upper()  # STRUCT, ARRAY, MAP
    return "DECIMAL" if _DECIMAL.fullmatch(kind) else _TYPES[kind][0]


def _text(kind: Any) -> str:
    """A type as SQL writes it."""
    if isinstance(kind, str):
        return kind if _DECIMAL.fullmatch(kind) else _TYPES[kind][1]
    if kind["type"] == "array":
        return f"array<{_text(kind['elementType'])}>"
    if kind["type"] == "map":
        return f"map<{_text(kind['keyType'])},{_text(kind['valueType'])}>"
    fields = ",".join(f"{each['name']}:{_text(each['type'])}" for each in kind["fields"])
    return f"struct<{fields}>"
