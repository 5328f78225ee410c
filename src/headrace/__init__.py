"""Headrace: replication between Postgres and the lakehouse.

import headrace
project = headrace.load("headrace.yaml")
project.run(once=True)
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.project import Project, load

__version__ = version("headrace")
__all__ = ["Project", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """The API is imported at first use: every module of the package passes through here."""
    if name in ("Project", "load"):
        from headrace import project

        return getattr(project, name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
