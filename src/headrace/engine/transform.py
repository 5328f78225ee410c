"""A user's rules applied to rows on their way: which, under what names, how masked.

`where` and `expect` see the source's columns and values; then columns are chosen, masked and
renamed (model.rules.RowRules). A row that `where` leaves out may have passed before, so it leaves
the destination. A row that `expect` parks leaves the destination's former row as it is, like a row
that the destination itself refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from headrace.engine.columns import OutputColumns, output_columns
from headrace.engine.judging import Flags, Judge, RuleCount, RuleCounts, Tally, Verdict
from headrace.engine.sandbox import Sandbox
from headrace.errors import ExpectationFailedError, QuarantineFullError
from headrace.model import Fill, NetChanges, Rejected, RowPart, RowRules, TableSchema
from headrace.model.delivery import QUARANTINE_ROWS

# Rows of a load that are transformed at a time, if that many bytes hold them.
BATCH_ROWS: Final = 65_536
BATCH_BYTES: Final = 8 << 20


class Transform:
    """The rules for one table as of one schema; `schema` is what comes out. For any threads.

    Where no rule has anything to do, changes and parts come back as they are: the same objects.

    The schema may be that of a table that is appended to, without a key and with FEED_COLUMNS:
    those are kept whatever `columns` says, and rules can use them.

    `unsent` says that the source leaves out long values that did not change (NetChanges.fills).
    `quarantine_rows` bounds the rows that one load may park.

    Raises:
        ConfigError: a rule does not fit the schema, or is not SQL about one row.
    """

    def __init__(
        self,
        rules: RowRules,
        schema: TableSchema,
        *,
        unsent: bool = False,
        quarantine_rows: int = QUARANTINE_ROWS,
    ) -> None:
        sandbox = Sandbox()
        self._source = schema
        self._columns = output_columns(rules, schema, sandbox)
        self._judge = Judge(rules, schema, sandbox)
        self._tally = Tally([rule.name for rule in rules.expectations])
        self._quarantine_rows = quarantine_rows
        if unsent:
            self._judge.refuse_unsent(_may_be_unsent(schema), self._columns.names)

    @property
    def schema(self) -> TableSchema:
        return self._columns.schema

    @property
    def counts(self) -> dict[str, RuleCount]:
        """Per expectation, since this transform was made; a part read again counts once."""
        return self._tally.counts()

    @property
    def is_identity(self) -> bool:
        return self._columns.is_identity and not self._judge.has_rules

    def changes(self, net: NetChanges) -> NetChanges:
        """The changes as the destination is to apply them.

        Raises:
            ExpectationFailedError: a row breaks a rule with `on_breach: fail`.
            RuleError: a rule cannot be computed.
        """
        if self.is_identity:
            return net
        for fill in net.fills:
            self._judge.refuse_unsent(fill.columns, self._columns.names)
        verdict = self._judge.judge(net.upserts)
        _stop_if_fatal(verdict, net.upserts, self._columns)
        kept = verdict.kept()
        changes = replace(
            net,
            schema=self.schema,
            upserts=self._columns.rows(_take(net.upserts, kept)),
            deletes=self._deletes(net, verdict.passes),
            fills=tuple(self._fills(net.fills)),
            rejected=(*self._still_rejected(net), *_parked(verdict, net.upserts, self._columns)),
        )
        self._tally.add(verdict.counts(), {})
        return changes

    def keys(self, rows: pa.Table) -> pa.Table:
        """Key columns (under the source's names, with its values) as the destination has them."""
        return self._columns.keys(rows)

    def parts(
        self, parts: Sequence[RowPart]
    ) -> tuple[Sequence[RowPart], Callable[[], Sequence[Rejected]]]:
        """The parts of a load, and what they park, to be called when all of them were read.

        Parts may be read side by side, and again. Reading them raises as `changes` does, and
        QuarantineFullError when more rows would be parked than a table may.
        """
        if self.is_identity:
            return parts, tuple
        load = _Load(self._judge, self._columns, self._tally, self._quarantine_rows)
        return [load.part(number, part) for number, part in enumerate(parts)], load.rejected

    def _deletes(self, net: NetChanges, passes: Flags) -> pa.Table:
        """Deletes always go through; upserts that `where` leaves out become deletes.

        Without a key deletes are whole rows, and of a row that was never applied there is nothing
        to take away: another row may be equal in what reached the destination.
        """
        if not self._source.key:
            return self._columns.rows(_take(net.deletes, self._judge.judge(net.deletes).kept()))
        key = list(self._source.key)
        left_out = _take(net.upserts.select(key), ~passes)
        return self._columns.keys(pa.concat_tables([net.deletes.select(key), left_out]))

    def _fills(self, fills: Sequence[Fill]) -> Iterator[Fill]:
        """Under their new names. Where there are any, `refuse_unsent` has seen to it that every
        upsert is kept, in its place."""
        names = self._columns.names
        for fill in fills:
            columns = tuple(names[column] for column in fill.columns if column in names)
            if columns:
                yield Fill(columns, fill.rows, self._columns.keys(fill.keys))

    def _still_rejected(self, net: NetChanges) -> Iterator[Rejected]:
        """What netting rejected, but for rows that are not wanted anyway; masked like the rest."""
        for rejected in net.rejected:
            rows = _take(rejected.rows, self._judge.passes(rejected.rows))
            if rows.num_rows:
                yield replace(rejected, rows=self._columns.rows(rows))


@dataclass
class _Reading:
    """What one reading of a part came to."""

    parked: list[Rejected] = field(default_factory=list)
    counts: RuleCounts = field(default_factory=dict)

    def add(self, parked: Sequence[Rejected], counts: RuleCounts) -> None:
        self.parked += parked
        self.counts = {
            rule: self.counts.get(rule, RuleCount()) + count for rule, count in counts.items()
        }

    @property
    def parked_rows(self) -> int:
        return sum(rejected.rows.num_rows for rejected in self.parked)


@dataclass
class _Load:
    """The parts of one load; of each the last whole reading counts, so that it may be repeated."""

    judge: Judge
    columns: OutputColumns
    tally: Tally
    quarantine_rows: int
    readings: dict[int, _Reading] = field(default_factory=dict)  # by the part's number

    def part(self, number: int, part: RowPart) -> RowPart:
        return RowPart(lambda: self._read(number, part), part.rows)

    def rejected(self) -> Sequence[Rejected]:
        """What all parts park, one table of rows per rule."""
        by_code: dict[str, list[Rejected]] = {}
        for _, reading in sorted(self.readings.items()):
            for rejected in reading.parked:
                by_code.setdefault(rejected.code, []).append(rejected)
        return [
            replace(found[0], rows=pa.concat_tables([rejected.rows for rejected in found]))
            for found in by_code.values()
        ]

    def _read(self, number: int, part: RowPart) -> Iterator[pa.RecordBatch]:
        reading = _Reading()
        for rows in _gathered(part.read()):
            verdict = self.judge.judge(rows)
            _stop_if_fatal(verdict, rows, self.columns)
            reading.add(_parked(verdict, rows, self.columns), verdict.counts())
            self._stop_if_full(number, reading)
            yield from self.columns.rows(_take(rows, verdict.kept())).to_batches()
        former = self.readings.get(number, _Reading())
        self.readings[number] = reading
        self.tally.add(reading.counts, instead_of=former.counts)

    def _stop_if_full(self, number: int, reading: _Reading) -> None:
        others = (read.parked_rows for part, read in [*self.readings.items()] if part != number)
        if reading.parked_rows and reading.parked_rows + sum(others) > self.quarantine_rows:
            rules = ", ".join(sorted({rejected.code for rejected in reading.parked}))
            raise QuarantineFullError(
                f"{self.columns.source.table}: more than {self.quarantine_rows} rows would be "
                f"parked ({rules}); nothing was applied",
                hint="correct the rows at the source or the rule, or raise quarantine: max_rows",
                table=self.columns.source.table,
            )


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Small batches as larger tables: a query costs a millisecond, however few its rows."""
    gathered: list[pa.RecordBatch] = []
    for batch in batches:
        gathered.append(batch)
        rows, size = sum(b.num_rows for b in gathered), sum(b.nbytes for b in gathered)
        if rows >= BATCH_ROWS or size >= BATCH_BYTES:
            yield pa.Table.from_batches(gathered)
            gathered = []
    if gathered:
        yield pa.Table.from_batches(gathered)


def _parked(verdict: Verdict, rows: pa.Table, columns: OutputColumns) -> list[Rejected]:
    return [
        Rejected(
            columns.rows(_take(rows, broken)),
            f"expect:{rule.name}",
            f"expect rule {rule.name} is not true: {rule.sql}",
        )
        for rule, broken in verdict.parked()
    ]


def _stop_if_fatal(verdict: Verdict, rows: pa.Table, columns: OutputColumns) -> None:
    found = verdict.fatal()
    if found is None:
        return
    rule, broken = found
    raise ExpectationFailedError(
        f"{columns.source.table}: expect rule {rule.name} ({rule.sql}) is not true of "
        f"{int(broken.sum())} of {len(broken)} rows{_first_key(rows, broken, columns)}; "
        "nothing was applied",
        hint=f"find them at the source by NOT ({rule.sql}) and correct them, or give the rule "
        "on_breach: quarantine or warn",
        table=columns.source.table,
        rule=rule.name,
    )


def _first_key(rows: pa.Table, broken: Flags, columns: OutputColumns) -> str:
    """The key of the first row as the destination would have it: masked, where it is masked."""
    if not columns.source.key:
        return ""
    [first] = columns.keys(rows.slice(int(broken.argmax()), 1)).to_pylist()
    return ", the first with " + ", ".join(f"{name} = {value}" for name, value in first.items())


def _take(rows: pa.Table, flags: Flags) -> pa.Table:
    return rows if flags.all() else rows.filter(pa.array(flags))


def _may_be_unsent(schema: TableSchema) -> list[str]:
    """Columns whose values Postgres may store apart from the row (TOAST): none of fixed length."""
    fixed = (pa.types.is_primitive, pa.types.is_boolean)
    return [
        column.name
        for column in schema.columns
        if column.name not in schema.key and not any(test(column.type) for test in fixed)
    ]
