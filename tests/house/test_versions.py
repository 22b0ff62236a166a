"""Versions: what pyproject.toml admits is what docs/versions.md says was tried."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import versions
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[str, versions.Row]:
    """The rows of the tables, by package."""
    found = versions.rows_of((repository / "docs/versions.md").read_text(encoding="utf-8"))
    assert len({row.package for row in found}) == len(found)
    return {row.package: row for row in found}


@pytest.fixture(scope="module")
def admitted(repository: Path) -> dict[str, set[str]]:
    """What a user's installation asks for: packages of the core and of the extras, with every range they are given."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "dev" for text in texts]
    found: dict[str, set[str]] = {}
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name != "tracetune":
            found.setdefault(requirement.name, set()).add(str(requirement.specifier))
    return found


def test_the_tables_have_every_dependency_and_its_range(rows, admitted):
    """Each package of pyproject.toml is in a table once, with the one range that it has in the core and all extras."""
    told = {name: {str(Requirement(f"{name}{row.range}").specifier)} for name, row in rows.items()}
    assert told == admitted


def test_a_range_begins_at_the_oldest_version_that_was_tried(rows):
    """Nothing older than the oldest version tried is admitted, and nothing of a major version after the newest.

    torch alone is admitted where it was not tried: the driver of a GPU decides which one can be installed.
    """
    for row in rows.values():
        if row.package == "torch":
            continue
        requirement = Requirement(f"{row.package}{row.range}")
        oldest, newest = (Requirement(tried[0]).specifier for tried in (row.oldest, row.newest))
        (oldest_version,), (newest_version,) = ([Version(one.version) for one in tried] for tried in (oldest, newest))
        bounds = {one.operator: Version(one.version) for one in requirement.specifier if one.operator != "!="}
        assert bounds[">="] == oldest_version, row
        assert oldest_version <= newest_version < bounds["<"], row
        assert bounds["<"].major <= newest_version.major + 1, row


def test_the_versions_that_everybody_develops_with_are_admitted(repository, rows):
    """Each version in constraints.txt lies between the oldest and the newest that were tried."""
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", (repository / "constraints.txt").read_text(), re.MULTILINE))
    for row in rows.values():
        tried = [Version(requirements[0].split("==")[1]) for requirements in (row.oldest, row.newest)]
        assert tried[0] <= Version(pinned[row.package]) <= tried[1], row


def test_the_tests_of_a_row_exist(repository, rows):
    """A row names files and folders of tests, or the whole suite."""
    for row in rows.values():
        assert [name for name in row.tests if not (repository / name).exists()] == []
    whole = [row for row in rows.values() if not row.tests]
    assert [row for row in whole if row.oldest != row.newest] == []


def test_rows_are_read_with_what_a_version_needs_beside_it():
    """A cell names a version, and the versions of other packages that it was tried with."""
    table = (
        "| package | range | oldest tried | newest tried | tests |\n"
        "| `one` | `>=1,<3` | 1.0.0 with two 1.1, three-four 2.0 | 2.5.0 | tests/store tests/cli/test_terminal.py |\n"
    )
    assert versions.rows_of(table) == [
        versions.Row(
            "one",
            ">=1,<3",
            ("one==1.0.0", "two==1.1", "three-four==2.0"),
            ("one==2.5.0",),
            ("tests/store", "tests/cli/test_terminal.py"),
        )
    ]
