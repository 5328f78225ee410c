"""Tables of every kind of key, and transactions that move, swap and reuse keys."""

from __future__ import annotations

# Per table: its creation with the rows of the snapshot, and transactions that follow.
KEYS: dict[str, tuple[str, list[list[str]]]] = {
    "composite": (
        "create table composite (a int, b text, v int, primary key (b, a));"
        "insert into composite select g, 'k' || g % 3, g from generate_series(1, 30) g",
        [
            ["update composite set v = -v where a < 10", "delete from composite where b = 'k2'"],
            ["update composite set a = a + 100, b = b || b where a > 20"],
        ],
    ),
    "text_key": (
        "create table text_key (k text primary key, v int);"
        "insert into text_key values ('', 1), (' ', 2), ('é', 3), ('e\u0301', 4), (E'a\tb', 5)",
        [["update text_key set v = v * 10", "delete from text_key where k = ' '"]],
    ),
    "uuid_key": (
        "create table uuid_key (k uuid primary key, v int); insert into uuid_key"
        " select md5(g::text)::uuid, g from generate_series(1, 50) g",
        [["update uuid_key set v = 0 where v % 2 = 0", "delete from uuid_key where v = 1"]],
    ),
    "exotic_key": (
        "create table exotic_key (d date, t timestamptz, n numeric(10,3), x bytea, b bool,"
        " primary key (d, t, n, x, b)); insert into exotic_key"
        " select date '1969-12-25' + g, 'epoch'::timestamptz + g * '1 us'::interval, g / 3.0,"
        " decode(lpad(to_hex(g), 2, '0'), 'hex'), g % 2 = 0 from generate_series(0, 20) g",
        [["delete from exotic_key where b"], ["update exotic_key set n = -n, b = true"]],
    ),
    "swapped": (
        "create table swapped (k int primary key, v text);"
        "insert into swapped values (1, 'one'), (2, 'two'), (3, 'three')",
        [
            [
                "update swapped set k = -1 where k = 1",
                "update swapped set k = 1 where k = 2",
                "update swapped set k = 2 where k = -1",
            ],
            [
                "update swapped set k = k + 20",
                "update swapped set k = 24 - k, v = v || v",
                "insert into swapped values (4, 'new')",
            ],
        ],
    ),
    "by_index": (
        "create table by_index (id int primary key, code text not null unique, v int);"
        "alter table by_index replica identity using index by_index_code_key;"
        "insert into by_index select g, 'c' || g, g from generate_series(1, 9) g",
        [
            ["update by_index set id = id + 100 where v < 4", "delete from by_index where v = 9"],
            ["update by_index set code = 'x' || code where v = 5"],
        ],
    ),
    "full_with_key": (
        "create table full_with_key (id int primary key, v text);"
        "alter table full_with_key replica identity full;"
        "insert into full_with_key select g, 'v' || g from generate_series(1, 9) g",
        [
            ["update full_with_key set v = null where id < 4"],
            ["update full_with_key set id = -id", "delete from full_with_key where id = -9"],
        ],
    ),
    "no_key": (
        "create table no_key (a int, b text, f float8); alter table no_key replica identity full;"
        "insert into no_key select g % 3, null, 'NaN' from generate_series(1, 30) g",
        [
            ["insert into no_key values (1, null, 'NaN'), (7, 'x', 0), (7, 'x', '-0')"],
            ["delete from no_key where ctid = any(array(select ctid from no_key limit 4))"],
            [
                "update no_key set b = 'y' where ctid = any(array(select ctid from no_key where"
                " b is null limit 3))",
                "insert into no_key values (9, 'z', 1), (9, 'z', 1), (9, 'z', 1)",
                "delete from no_key where ctid = (select max(ctid) from no_key where a = 9)",
            ],
        ],
    ),
    "deferred": (
        "create table deferred (id int primary key, v int,"
        " unique (v) deferrable initially deferred);"
        "insert into deferred select g, g from generate_series(1, 6) g",
        [["update deferred set v = 7 - v"]],
    ),
    "deferred_key": (
        "create table deferred_key (id int primary key deferrable initially deferred, v int);"
        "alter table deferred_key replica identity full;"
        "insert into deferred_key select g, g from generate_series(1, 6) g",
        [["update deferred_key set id = 7 - id"], ["delete from deferred_key where id = 1"]],
    ),
}
