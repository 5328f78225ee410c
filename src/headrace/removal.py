"""`headrace destroy`: takes away what Headrace created, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
from psycopg import sql

from headrace import assembly, syncing
from headrace.config import Capture, Settings, Sync
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.slot_state import slot_state
from headrace.connectors.postgres.slots import drop_slot, in_recovery
from headrace.errors import DestinationUnavailableError
from headrace.log import Storage
from headrace.log.layout import Layout

# What check's fixes say of a publication that they create.
PUBLICATION_COMMENT = "created by headrace"

PUBLICATION_OWNED = """
SELECT pg_catalog.obj_description(oid, 'pg_publication') FROM pg_catalog.pg_publication
 WHERE pubname = %s
"""


def remove_capture(settings: Settings, capture: Capture) -> list[str]:
    """Drop the capture's slot and publication, if Headrace made them, and its change log.

    What Postgres destinations keep beside their tables goes too. Gives a line for each thing that
    went or stayed. Destination tables stay.

    Raises:
        LogLockedError, DestinationLockedError: a run is going on.
        SourceUnavailableError: the source cannot be reached; nothing was removed.
    """
    storage = assembly.log_storage(settings)
    lock = storage.lock(Layout(capture.name).lock)
    try:
        with source_session(capture.connection) as session:
            done = [_drop_slot(session, storage, capture), _drop_publication(session, capture)]
            done += _forget_destinations(settings, capture)
        paths = [entry.path for entry in storage.list(Layout(capture.name).root)]
        storage.delete([path for path in paths if path != Layout(capture.name).lock])
        return [*done, f"removed the change log {storage.location(Layout(capture.name).root)}"]
    finally:
        lock.release()


def _forget_destinations(settings: Settings, capture: Capture) -> Iterator[str]:
    """What Postgres destinations keep for the capture's pipelines; Delta tables keep it inside.

    One that is gone keeps nobody from giving its slot back.
    """
    for pipeline in capture.pipelines:
        place = assembly.destination(settings, pipeline)
        if isinstance(place, PostgresDestination):
            try:
                with closing(place), place.claim(pipeline):
                    yield from place.forget_pipeline(pipeline)
            except DestinationUnavailableError as error:
                yield f"{pipeline}: what the destination keeps is left: {error.message}"


def _drop_slot(session: psycopg.Connection[Any], storage: Storage, capture: Capture) -> str:
    if slot_state(session, capture.slot) is None:
        return f"slot {capture.slot}: there is none"
    if not assembly.owns_slot(storage, capture):
        return f"slot {capture.slot}: kept, because Headrace did not create it"
    drop_slot(session, capture.slot)
    return f"dropped slot {capture.slot}"


def _drop_publication(session: psycopg.Connection[Any], capture: Capture) -> str:
    found = session.execute(PUBLICATION_OWNED, (capture.publication,)).fetchone()
    if found is None:
        return f"publication {capture.publication}: there is none"
    if found[0] != PUBLICATION_COMMENT:
        return f"publication {capture.publication}: kept, because Headrace did not create it"
    if in_recovery(session):
        return f"publication {capture.publication}: kept, because only the primary can drop it"
    session.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(capture.publication)))
    return f"dropped publication {capture.publication}"


def remove_sync(settings: Settings, sync: Sync) -> list[str]:
    """Forget where a pipeline's tables stand, with their quarantine and former generations.

    Gives a line for each thing that went. The tables stay.

    Raises:
        DestinationLockedError: a run is going on.
    """
    with closing(syncing.destination(sync)) as place, place.claim(sync.name):
        done = place.forget_pipeline(sync.name)
    syncing.forget_record(settings, sync.name)
    return done
