"""Schema changes of a source: those that any destination follows, those that a Delta table does,
and those that stop one table.

Each is a list of statements; `{t}` is the case's own table.
"""

from __future__ import annotations

import re

KEYLESS = "to a table without a key"
ADDED = {
    "nullable": ["alter table {t} add n int", "insert into {t} values (50, 'x', 1)"],
    "with a constant": [
        "alter table {t} add n numeric(9,2) default 1.50 not null, add t text default 'é''\"{{,}}'",
        "insert into {t} (id) values (50)",
        "update {t} set t = null where id = 2",
    ],
    "with constants of many types": [
        "alter table {t} add a int[] default '{{1,NULL}}', add b bytea default '\\x00ff',"
        " add c timestamptz default '2020-01-01 00:00:00.000001+00', add d bool default false,"
        " add e date default '1999-12-31', add f float8 default 'NaN', add g jsonb default '{{}}',"
        " add h text[] default array['a,b', null, '\"'], add i char(4) default 'x'",
        "update {t} set d = true where id = 3",
    ],
    "with a default that changes afterwards": [
        "alter table {t} add n int default 1",
        "alter table {t} alter n set default 2",
        "insert into {t} (id) values (50)",
        "alter table {t} alter n drop default",
        "update {t} set v = 'w' where id = 1",
    ],
    "several times": [
        "alter table {t} add n int default 1",
        "insert into {t} (id) values (50)",
        "alter table {t} add m text",
        "update {t} set m = 'm' where id < 5",
        "delete from {t} where id = 6",
        "alter table {t} add o bool default true",
        "update {t} set id = -id where id = 7",
    ],
    KEYLESS: [
        "alter table {t} add n int default 3",
        "delete from {t} where ctid = any(array(select ctid from {t} limit 3))",
        "insert into {t} values (1, 'v1', 3), (1, 'v1', null)",
        "update {t} set v = 'w' where ctid = (select min(ctid) from {t})",
    ],
    "and nothing more": ["alter table {t} add n int default 5"],
    "after a truncate": [
        "insert into {t} values (60, 'gone')",
        "truncate {t}",
        "alter table {t} add n int default 5",
        "insert into {t} (id) values (1)",
    ],
}

MOVED = {
    "a dropped column": ["alter table {t} add n int", "alter table {t} drop column v"],
    "a renamed column": ["alter table {t} rename v to w"],
    "a wider type": ["alter table {t} alter id type bigint"],
    "names exchanged": [
        "alter table {t} add w text",
        "alter table {t} rename v to x",
        "alter table {t} rename w to v",
        "alter table {t} rename x to w",
    ],
    "no longer required": [
        "alter table {t} add n int not null default 1",
        "alter table {t} alter n drop not null",
    ],
}

STOPPING = {
    "a volatile default": ["alter table {t} add n float8 default random()"],
    "a default of its own for each row": ["alter table {t} add n bigserial"],
    "a changed type": ["alter table {t} alter v type bytea using v::bytea"],
    "dropped and added anew": [
        "alter table {t} drop column v",
        "alter table {t} add column v text",
    ],
    # Nothing tells this from a volatile default: both have a default and no missing value.
    "a default set afterwards": [
        "alter table {t} add n int",
        "alter table {t} alter n set default 7",
    ],
}


def names(cases: dict[str, list[str]]) -> dict[str, str]:
    """Each case's table."""
    return {case: re.sub(r"\W", "_", case) for case in cases}
