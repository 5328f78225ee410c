"""What a user's `where` and `expect` rules say of rows: which pass, and which break what."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.engine.conditions import Condition, compile_condition, evaluate
from headrace.engine.sandbox import Sandbox
from headrace.errors import ConfigError
from headrace.model import Expectation, OnBreach, RowRules, TableSchema

Flags = npt.NDArray[np.bool_]  # one per row


@dataclass(frozen=True)
class RuleCount:
    """Rows that a rule was asked about, and those for which it was not true."""

    checked: int = 0
    breaches: int = 0

    def __add__(self, other: RuleCount) -> RuleCount:
        return RuleCount(self.checked + other.checked, self.breaches + other.breaches)

    def __sub__(self, other: RuleCount) -> RuleCount:
        return RuleCount(self.checked - other.checked, self.breaches - other.breaches)


RuleCounts = Mapping[str, RuleCount]  # by the rule's name


class Tally:
    """Counts per rule, from any number of threads."""

    def __init__(self, rules: Collection[str]) -> None:
        self._counts = {rule: RuleCount() for rule in rules}
        self._lock = Lock()

    def add(self, counts: RuleCounts, instead_of: RuleCounts) -> None:
        """Count `counts`; `instead_of` are former counts of the same rows."""
        with self._lock:
            for rule, count in counts.items():
                self._counts[rule] += count - instead_of.get(rule, RuleCount())

    def counts(self) -> dict[str, RuleCount]:
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True)
class Verdict:
    """`passes`: `where` is true; `broken`: per rule, in the rules' order, those that break it."""

    passes: Flags
    broken: tuple[tuple[Expectation, Flags], ...]

    def counts(self) -> dict[str, RuleCount]:
        checked = int(self.passes.sum())
        return {rule.name: RuleCount(checked, int(rows.sum())) for rule, rows in self.broken}

    def fatal(self) -> tuple[Expectation, Flags] | None:
        """The first rule that stops the table, and the rows that break it."""
        fatal = (b for b in self.broken if b[0].on_breach is OnBreach.FAIL and b[1].any())
        return next(fatal, None)

    def parked(self) -> Iterator[tuple[Expectation, Flags]]:
        """The rows for the quarantine, each under the first rule that it breaks."""
        seen = np.zeros_like(self.passes)
        for rule, rows in self.broken:
            new = rows & ~seen
            if rule.on_breach is OnBreach.QUARANTINE and new.any():
                yield rule, new
                seen |= new

    def kept(self) -> Flags:
        kept = self.passes.copy()
        for _, rows in self.parked():
            kept &= ~rows
        return kept


class Judge:
    """The `where` and `expect` rules of one table as of one schema.

    Raises:
        ConfigError: a rule is not SQL about one row of the schema.
    """

    def __init__(self, rules: RowRules, schema: TableSchema, sandbox: Sandbox) -> None:
        self._schema = schema
        self._sandbox = sandbox
        self._where = (
            None
            if rules.where is None
            else compile_condition("where", rules.where, schema, sandbox)
        )
        self._expectations = rules.expectations
        self._conditions = [
            compile_condition(f"expect rule {rule.name}", rule.sql, schema, sandbox, clock=True)
            for rule in rules.expectations
        ]

    @property
    def has_rules(self) -> bool:
        return bool(self._where or self._conditions)

    def judge(self, rows: pa.Table) -> Verdict:
        """Raises RuleError: a rule cannot be computed for some row."""
        where, *results = evaluate(self._where, self._conditions, rows, self._schema, self._sandbox)
        passes = _flags(where)
        broken = [passes & ~_flags(pc.fill_null(result, True)) for result in results]
        return Verdict(passes, tuple(zip(self._expectations, broken, strict=True)))

    def passes(self, rows: pa.Table) -> Flags:
        """What `where` alone says."""
        return _flags(evaluate(self._where, (), rows, self._schema, self._sandbox)[0])

    def refuse_unsent(self, unsent: Collection[str], arriving: Collection[str]) -> None:
        """Refuse rules that cannot be exact where the source leaves columns out of some rows.

        A rule cannot be computed from a value that was not sent. And a rule that chooses rows
        leaves the destination with no row to take the value of an `arriving` column from, or with
        an older one.

        Raises:
            ConfigError: there is such a rule.
        """
        for condition, chooses in self._by_choosing():
            needed = condition.columns.union(arriving if chooses else ())
            if asked := sorted(needed.intersection(unsent)):
                raise ConfigError(
                    f"{condition.rule} of {self._schema.table}: the source does not send "
                    f"{', '.join(asked)} again when it stays as it was, so that the rule cannot "
                    f"{'choose rows' if chooses else 'be judged'} exactly",
                    hint=f"ALTER TABLE {self._schema.table.quoted} REPLICA IDENTITY FULL",
                    table=self._schema.table,
                )

    def _by_choosing(self) -> Iterator[tuple[Condition, bool]]:
        if self._where:
            yield self._where, True
        for rule, condition in zip(self._expectations, self._conditions, strict=True):
            yield condition, rule.on_breach is OnBreach.QUARANTINE


def _flags(values: pa.ChunkedArray) -> Flags:
    flags: Flags = values.to_numpy()
    return flags
