"""Orders of changes in which the stream does not send a TOASTed value that nobody must lose.

Each is a list of transactions, and those are lists of statements; `{t}` is the order's own table.
"""

from __future__ import annotations

import hashlib
import re


def big(seed: int) -> str:
    """12 kB that compression cannot bring below the size that moves a value out of line."""
    return "".join(hashlib.sha512(f"{seed}.{i}".encode()).hexdigest() for i in range(96))


ORDERS = {
    "update of a row in the lake": [[("update {t} set n = 1",)]],
    "insert and update in one transaction": [
        [("insert into {t} values (9, 0, %s, %s)", (big(9), big(-9))), ("update {t} set n = 1",)]
    ],
    "insert and update in one commit of the log": [
        [("insert into {t} values (9, 0, %s, %s)", (big(9), big(-9)))],
        [("update {t} set n = 1 where id = 9",)],
        [("update {t} set n = 2 where id = 9",)],
    ],
    "one column sent, the other not, and the other way round": [
        [("update {t} set a = %s where id = 1", (big(100),))],
        [("update {t} set b = %s where id = 1", (big(101),))],
        [("update {t} set n = 5 where id = 1",)],
    ],
    "after a change of key": [
        [("update {t} set id = 50 where id = 1",)],
        [("update {t} set n = 7 where id = 50",)],
    ],
    "through two keys and back": [
        [("update {t} set id = -1 where id = 1",), ("update {t} set id = 1 where id = 2",)],
        [("update {t} set id = 2 where id = -1",), ("update {t} set n = n + 1",)],
    ],
    "a key that another row left": [
        [("delete from {t} where id = 1",), ("update {t} set id = 1, n = 3 where id = 2",)]
    ],
    "deleted and inserted anew": [
        [("update {t} set n = 1 where id = 1",), ("delete from {t} where id = 1",)],
        [("insert into {t} values (1, 0, %s, null)", (big(200),)), ("update {t} set n = 8",)],
    ],
    "set to null, then another column": [
        [("update {t} set a = null where id = 1",)],
        [("update {t} set n = 4 where id = 1",)],
    ],
    "after a truncate": [
        [("truncate {t}",), ("insert into {t} values (1, 0, %s, %s)", (big(7), big(8)))],
        [("update {t} set c = 'x'",)],
    ],
}

STEPS = max(len(transactions) for transactions in ORDERS.values())


def names() -> dict[str, str]:
    return {order: re.sub(r"\W", "_", order) for order in ORDERS}
