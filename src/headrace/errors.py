"""The exception tree: what happened, to which object, and what to do about it.

Every error a user can meet descends from `HeadraceError`, carries a `hint` (a command or SQL where
there is one) and pickles, so that it crosses processes unchanged. Messages never hold secrets.
"""

from __future__ import annotations

from typing import Any, ClassVar


class HeadraceError(Exception):
    """The root. `message` says what happened and to which object; `hint` what to do.

    Further keyword arguments become read-only context (`error.context["table"]`).
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False  # True: trying again later may succeed without anybody's help

    def __init__(self, message: str, *, hint: str = "", **context: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.context))

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


def _rebuild(
    kind: type[HeadraceError], message: str, hint: str, context: dict[str, Any]
) -> HeadraceError:
    return kind(message, hint=hint, **context)


# -- configuration and wrong use -------------------------------------------------------------------


class ConfigError(HeadraceError):
    """headrace.yaml, an argument or the environment is wrong. Context: file, line."""

    exit_code = 2


class CheckFailedError(HeadraceError):
    """A preflight found what would make a run fail or lose rows. Context: findings."""

    exit_code = 3


# -- the source ------------------------------------------------------------------------------------


class SourceError(HeadraceError):
    """The source database refused or cannot do what is asked."""


class SourceUnavailableError(SourceError):
    """The source cannot be reached, or the connection was lost."""

    transient = True


class DecodingError(SourceUnavailableError):
    """The server came upon an error of its own when it read a transaction from its WAL."""


class SenderRefusedError(SourceUnavailableError):
    """The server grants no further replication connection."""


class SlotRefusedError(SourceError):
    """The server grants no further replication slot."""


class SlotLostError(SourceError):
    """The replication slot is gone, invalidated, or not where the change log left it."""


class CopyStoppedError(SourceError):
    """A snapshot was cut short because the run ends; the next run copies the table anew."""


class TableRewrittenError(SourceError):
    """A table was truncated, rewritten or locked after its snapshot; it is copied anew."""

    transient = True


class ProtocolError(SourceError):
    """Bytes from the server that the replication protocol does not allow."""


class TableNotFoundError(SourceError):
    """The source has no such table, or the role cannot see it."""


class UnrepresentableValueError(SourceError):
    """A value that its column's Arrow type cannot hold, such as an infinite timestamp.

    Context: value (text of the first, shortened), row (its index), count, arrow (the type).
    """


class UnusableKeyError(SourceError):
    """The key that headrace.yaml names cannot identify the rows of its table."""


class UnsuitableShapeError(SourceError):
    """A table cannot be kept at its destination in the way that headrace.yaml asks for."""


class UnsupportedSchemaChangeError(SourceError):
    """A table changed in a way that its destination cannot follow; only that table stops."""


# -- the change log --------------------------------------------------------------------------------


class LogError(HeadraceError):
    """The change log cannot be read or written."""


class LogFullError(LogError):
    """No room is left where the change log lives; nothing was acknowledged."""

    transient = True


class LogUnavailableError(LogError):
    """The object store that holds the change log cannot be reached for now."""

    transient = True


class ObjectMissingError(LogError):
    """A file or object that was to be read is not there. Context: path."""


class ObjectExistsError(LogError):
    """A file or object stands where a new one was to be put. Context: path."""


class LogLockedError(LogError):
    """Another process writes this change log."""


class LogCorruptError(LogError):
    """A file of the change log is missing or not what its manifest says."""


class LogGapError(LogError):
    """The log no longer holds what a reader has yet to see."""


class TableStoppedError(LogError):
    """The capture follows this table no further, because a change of it cannot be represented."""


# -- destinations ----------------------------------------------------------------------------------


class DestinationError(HeadraceError):
    """The destination refused or cannot do what is asked."""


class DestinationUnavailableError(DestinationError):
    """The destination cannot be reached for now."""

    transient = True


class DestinationConflictError(DestinationError):
    """Another writer commits to the same table faster than we can follow."""

    transient = True


class ForeignTableError(DestinationError):
    """A table stands at the destination that this pipeline did not make."""


class UnsuitableTableError(DestinationError):
    """A table that stands at the destination cannot hold what the source has."""


class DestinationLockedError(DestinationError):
    """Another run writes this pipeline's tables."""


class UnswappableError(DestinationError):
    """A table cannot be replaced by a new generation; its rows are to be changed in place."""


class TableBusyError(DestinationError):
    """Other sessions did not let a table be swapped in time; nothing was changed."""

    transient = True


class NoGenerationError(DestinationError):
    """There is no former generation of a table that could be brought back."""


class QuarantineFullError(DestinationError):
    """More rows of a table could not be applied than its budget allows; nothing was applied."""


class RowsWaitError(QuarantineFullError):
    """More rows wait for rows of other tables than may be parked; they may come by themselves."""


class ExpectationFailedError(DestinationError):
    """A row breaks an `expect:` rule that stops its table; nothing was applied."""


class RuleError(DestinationError):
    """A `where:` or `expect:` rule cannot be computed for some row; nothing was applied.

    Context: table, rule.
    """


class HistoryLostError(SourceError):
    """Changes since the applied version cannot be read, and nothing else would be exact."""


class NoVersionError(DestinationError):
    """A table has no version that holds what its source held at an LSN. Context: table."""


class DivergedError(DestinationError):
    """The destination lacks a row or state that the change log says it must have."""


class VerificationImpossibleError(HeadraceError):
    """Source and destination cannot be brought to one LSN or version to be compared."""


# -- ourselves -------------------------------------------------------------------------------------


class UnexpectedError(HeadraceError):
    """A fault of Headrace itself."""

    @classmethod
    def wrap(cls, where: str, error: Exception) -> UnexpectedError:
        """Tell where `error`, which nothing foresaw, came up; keep it as the cause."""
        wrapped = cls(
            f"{where}: unexpected {type(error).__name__}: {error}",
            hint="this is a bug in Headrace: please report it with the log of this run (-v)",
        )
        wrapped.__cause__ = error
        return wrapped
