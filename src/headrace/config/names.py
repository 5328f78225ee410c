"""Names that headrace.yaml may give, and those that follow from them."""

from __future__ import annotations

import re
from typing import Final

# They become folder names and parts of slot names.
NAME_PATTERN: Final = r"^[A-Za-z0-9_-]{1,60}$"
# PostgreSQL documentation, "Querying and Manipulating Replication Slots": lower-case letters,
# digits and underscores, at most NAMEDATALEN - 1 bytes.
SLOT_PATTERN: Final = r"^[a-z0-9_]{1,63}$"


def default_slot(connection: str) -> str:
    """`headrace_<connection>`, made of what a slot's name may hold; also the publication's name."""
    return f"headrace_{re.sub(r'[^a-z0-9_]', '_', connection.lower())}"[:63]
