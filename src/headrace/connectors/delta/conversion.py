"""What of a table's properties and protocol follows from its user's choices, and how a table that
stands is brought to other ones.

headrace.yaml decides whether a table has deletion vectors; a Change Data Feed that somebody else
switched on stays on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.rewriting import rewrite
from headrace.connectors.delta.rows import load_vector
from headrace.connectors.delta.schema import (
    CHANGE_DATA_FEED,
    DELETION_VECTORS,
    with_features,
    without_feature,
)
from headrace.connectors.delta.state import TableState
from headrace.log.storage import Storage
from headrace.model import ChangeFeed, TableFormat

VECTORS_PROPERTY: Final = "delta.enableDeletionVectors"
FEED_PROPERTY: Final = "delta.enableChangeDataFeed"


def has_vectors(state: TableState) -> bool:
    """Whether rows that go are marked, instead of their files being written anew."""
    return state.configuration.get(VECTORS_PROPERTY, "").lower() == "true"


def has_feed(state: TableState) -> bool:
    """Whether readers may ask what a version changed."""
    return state.configuration.get(FEED_PROPERTY, "").lower() == "true"


def properties(configuration: Mapping[str, str], layout: TableFormat) -> dict[str, str]:
    """A table's properties with those that follow from its layout."""
    feed = {} if layout.change_feed is ChangeFeed.OFF else {FEED_PROPERTY: "true"}
    return {**configuration, VECTORS_PROPERTY: str(layout.deletion_vectors).lower(), **feed}


def protocol(standing: Mapping[str, Any], layout: TableFormat) -> dict[str, Any]:
    """The table's protocol with what its layout needs, and without what it has no use for."""
    if not layout.deletion_vectors:
        standing = without_feature(standing, DELETION_VECTORS)
    else:
        standing = with_features(standing, reader=[DELETION_VECTORS], writer=[DELETION_VECTORS])
    feed = [] if layout.change_feed is ChangeFeed.OFF else [CHANGE_DATA_FEED]
    return with_features(standing, writer=feed)


def converted(storage: Storage, state: TableState, layout: TableFormat) -> list[Action]:
    """A commit that brings the table to `layout`; none if it stands so.

    Without deletion vectors, files that have one are written anew, in the same commit, so that
    readers who know none can read the table from that version on. No row changes by it.

    Raises:
        LogError: a file cannot be read or written.
    """
    configuration = properties(state.configuration, layout)
    new_protocol = protocol(state.protocol, layout)
    if configuration == state.configuration and new_protocol == state.protocol:
        return []
    changed = {k: v for k, v in configuration.items() if state.configuration.get(k) != v}
    return [
        actions.commit_info("SET TBLPROPERTIES", parameters=changed),
        {"protocol": new_protocol},
        {"metaData": {**state.metadata, "configuration": configuration}},
        *([] if layout.deletion_vectors else _without_vectors(storage, state)),
    ]


def purged(storage: Storage, state: TableState) -> list[Action]:
    """A commit that writes files that have a deletion vector anew, before all files are removed;
    none if there are none, or no feed: of a file that is removed, `load_cdf` (deltalake 1.6.6)
    tells the rows that its vector had taken before.

    Raises:
        LogError: a file cannot be read or written.
    """
    rewritten = _without_vectors(storage, state) if has_feed(state) else []
    return [actions.commit_info("REORG"), *rewritten] if rewritten else []


def _without_vectors(storage: Storage, state: TableState) -> list[Action]:
    worn = [file for file in state.files.values() if file.get("deletionVector")]
    touched = ((file, load_vector(storage, file["deletionVector"])) for file in worn)
    stored = state.columns
    return [
        *(actions.remove(file, data_change=False) for file in worn),
        *rewrite(storage, touched, stored, data_change=False),
    ]
