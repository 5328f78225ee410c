"""Where a table's files lie, and with which credentials they are read now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from headrace.log.storage import Storage, open_storage


@dataclass(frozen=True)
class Place:
    """A table's root: an absolute path or URL, and storage options in deltalake's names."""

    url: str
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def storage(self) -> Storage:
        """Raises LogError where the options are wrong."""
        return open_storage(self.url, self.options)


class Locator(Protocol):
    """Finds a table's place, as often as it is needed; safe to call from several threads."""

    def __call__(self) -> Place: ...
