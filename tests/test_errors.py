"""The exception tree keeps its promises: it pickles, it says what to do, its names end in Error."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import headrace
from headrace.errors import HeadraceError, UnexpectedError


def load_every_module() -> None:
    for module in pkgutil.walk_packages(headrace.__path__, "headrace."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def below(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        yield child
        yield from below(child)


load_every_module()
OURS = sorted({HeadraceError, *below(HeadraceError)}, key=lambda kind: kind.__qualname__)
EXCEPTIONS = sorted(
    {kind for kind in below(BaseException) if kind.__module__.partition(".")[0] == "headrace"},
    key=lambda kind: kind.__qualname__,
)


def test_the_tree_was_found() -> None:
    assert {"ConfigError", "DivergedError", "LogError"} <= {kind.__name__ for kind in OURS}
    assert set(OURS) <= set(EXCEPTIONS)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_crosses_processes_unchanged(kind: type[HeadraceError], protocol: int) -> None:
    error = kind("public.t: gone", hint="headrace resync public.t", table="public.t", line=3)
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert (copy.message, copy.hint) == ("public.t: gone", "headrace resync public.t")
    assert copy.context == {"table": "public.t", "line": 3}
    assert (str(copy), copy.args) == (str(error), error.args)


@pytest.mark.parametrize("kind", OURS)
def test_every_error_shows_its_message_and_then_its_hint(kind: type[HeadraceError]) -> None:
    assert str(kind("it broke")) == "it broke"
    assert str(kind("it broke", hint="mend it")) == "it broke\nhint: mend it"


@pytest.mark.parametrize("kind", EXCEPTIONS)
def test_every_exception_is_named_an_error_and_explained(kind: type[BaseException]) -> None:
    assert kind.__name__.endswith("Error")
    assert (kind.__doc__ or "").strip()


@pytest.mark.parametrize("kind", OURS)
def test_every_error_ends_the_command_line_as_documented(kind: type[HeadraceError]) -> None:
    assert kind.exit_code in {1, 2, 3, 4}  # DESIGN §3: failed, wrong use, a blocker, a difference


def test_an_unforeseen_error_keeps_its_cause_and_asks_for_a_report() -> None:
    cause = KeyError("x")
    error = UnexpectedError.wrap("public.t", cause)
    assert error.__cause__ is cause
    assert error.message == "public.t: unexpected KeyError: 'x'"
    assert "report" in error.hint
