"""Whatever a page points to is there."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from pages import ROOT, links, name, pages

# Where a page may leave away the front of a path.
BASES = (ROOT, ROOT / "src" / "headrace")
_CODE_PATH = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:pyx|pxd|py|md))`")


def target(page: Path, link: str) -> Path:
    return (page.parent / link.partition("#")[0]).resolve()


def is_local(link: str) -> bool:
    return "://" not in link and not link.startswith(("#", "mailto:"))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    lost = [link for link in links(page) if is_local(link) and not target(page, link).exists()]
    assert lost == []


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = [found for found in _CODE_PATH.findall(page.read_text("utf-8")) if "/" in found]
    assert [path for path in named if not any((base / path).exists() for base in BASES)] == []


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "index.md"
    reached = [target(index, link) for link in links(index)]
    unreached = [
        name(page)
        for page in index.parent.glob("**/*.md")
        if page != index and not any(page.is_relative_to(place) for place in reached)
    ]
    assert unreached == []


def test_every_message_that_a_page_tells_how_to_recover_from_is_one_of_ours() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "src").glob("**/*.py")]
    code = "\n".join(re.sub(r'"\s*\n\s*f?"', "", source) for source in sources)
    table = (ROOT / "docs" / "how-to" / "recover.md").read_text("utf-8")
    seen = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.*?) \| ", table, re.M)))
    assert len(seen) >= 5
    code += os.strerror(errno.ENOSPC)  # the system's own words
    parts = [part.strip() for message in seen for part in message.split("…")]
    assert [part for part in parts if part not in code] == []


def promises() -> dict[str, list[Path]]:
    """The table of promises in the README, each with the files that prove it."""
    text = (ROOT / "README.md").read_text("utf-8")
    section = text.partition("## What it promises\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:2] == "| "]
    return {
        cells[0]: [ROOT / link for link in re.findall(r"\]\(([^)]+)\)", cells[-1])]
        for cells in rows
        if cells[0] != "promise"
    }


def test_the_table_of_promises_is_found() -> None:
    assert len(promises()) >= 10


@pytest.mark.parametrize("promise", promises())
def test_every_promise_names_tests_that_are_there(promise: str) -> None:
    proofs = promises()[promise]
    assert proofs
    for proof in proofs:
        assert proof.name.startswith("test_"), proof
        assert "\ndef test_" in proof.read_text("utf-8"), proof


_TEST_LINK = re.compile(r"\[`(test_\w+)`\]\(([^)\s]+)\)")


def named_tests(page: Path) -> list[tuple[str, Path]]:
    """The tests that a page leads to by name, each with its file."""
    found = _TEST_LINK.findall(page.read_text("utf-8"))
    return [(test, target(page, link)) for test, link in found]


@pytest.mark.parametrize("page", [page for page in pages() if named_tests(page)], ids=name)
def test_every_test_that_a_page_names_is_in_the_file_that_it_leads_to(page: Path) -> None:
    missing = [
        test for test, file in named_tests(page) if f"\ndef {test}(" not in file.read_text("utf-8")
    ]
    assert missing == []


def test_every_failure_of_others_names_its_proof() -> None:
    page = ROOT / "docs" / "explanation" / "what-breaks-others.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    failures = [row for row in rows if not row.startswith("| what went wrong")]
    assert len(failures) >= 40
    assert [row for row in failures if not _TEST_LINK.search(row)] == []
