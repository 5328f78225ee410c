"""Beginning a change log anew, under another identity, in place of one that lost its source.

Its commits tell of a source that is no more as it was: what follows them cannot be read. Tables
that stand at the old log's checkpoints learn it from its id, and are compared with their source.

A crash half-way would leave a log without some of its commits. So the intent is durable first, and
whoever opens the log next carries it out.
"""

from __future__ import annotations

import json
from typing import Any

from headrace.log.layout import Layout
from headrace.log.manifest import FORMAT
from headrace.log.storage import Storage


def intend_anew(storage: Storage, layout: Layout, why: str) -> None:
    """Have the next opening of the log begin it anew. Needs the lock."""
    storage.put(layout.anew, json.dumps({"format": FORMAT, "why": why}).encode())


def finish_anew(storage: Storage, layout: Layout) -> None:
    """Remove what an intent says is void: all but the lock, what is asked, and who reads. Needs the
    lock."""
    if not storage.exists(layout.anew):
        return
    for entry in storage.list(layout.readers):
        reader = json.loads(storage.get(entry.path))
        storage.put(entry.path, json.dumps(_rewound(reader), ensure_ascii=False).encode())
    for folder in (layout.commits, layout.unfinished, *layout.data, layout.schemas):
        storage.delete([entry.path for entry in storage.list(folder)])
    storage.delete([layout.floor, layout.covered, layout.source, layout.identity])
    storage.delete([layout.anew])


def _rewound(reader: dict[str, Any]) -> dict[str, Any]:
    """A reader that has seen nothing yet; what it counted and when it copied tables is kept."""
    tables = reader.get("tables") or {}
    unseen = {"passed": 0, "applied": None, "commit_ts": None}
    return {**reader, "tables": {name: {**known, **unseen} for name, known in tables.items()}}
