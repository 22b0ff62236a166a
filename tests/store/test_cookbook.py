"""The cookbook: every query runs on the store that its first page makes, and answers what is shown below it."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass

import pytest
from house.markdown_blocks import REPOSITORY, blocks_of, check_output, run_blocks

from tracetune import Store
from tracetune.terminal import write_table

PAGE = REPOSITORY / "docs" / "cookbook.md"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in [PAGE, *sorted(PAGE.with_suffix("").glob("*.md"))])


@dataclass(frozen=True)
class Recipe:
    """A query, and the table that is shown below it."""

    query: str
    shown: str


RECIPES = {
    section.partition("\n")[0]: Recipe(*found.groups())
    for section in TEXT.split("\n## ")[1:]
    if (found := re.search(r"```sql\n(.*?)```\n\n```text\n(.*?)```", section, flags=re.DOTALL))
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The store that the first page makes."""
    folder = tmp_path_factory.mktemp("cookbook")
    with contextlib.chdir(folder):
        run_blocks(blocks_of(PAGE), folder)
    return Store(folder / "traces.duckdb", read_only=True)


def test_every_question_has_a_query_and_its_answer():
    """There are at least twenty, no heading is without one, and the first page lists the questions of the others."""
    questions = re.findall(r"^## (.*)$", TEXT, flags=re.MULTILINE)
    assert list(RECIPES) == questions
    assert len(RECIPES) == TEXT.count("```sql") >= 20
    first = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^(?:- |## )(.*\?)$", first, flags=re.MULTILINE)) == set(questions)


@pytest.mark.parametrize("question", RECIPES)
def test_a_query_answers_what_the_page_shows(store, question):
    """The table is the one that `tracetune sql` prints, and it has rows."""
    answer = store.sql(RECIPES[question].query).arrow()
    printed = io.StringIO()
    rows = list(zip(*(column.to_pylist() for column in answer.columns), strict=True))
    write_table(answer.column_names, rows, printed)
    assert rows
    check_output(question, RECIPES[question].shown, printed.getvalue())


@pytest.mark.parametrize("question", RECIPES)
def test_a_query_never_joins_everything_with_everything(store, question):
    """On a large store a plan with a product or a nested loop would not end."""
    [plan] = store.sql(f"EXPLAIN {RECIPES[question].query}").rows()
    operators = set(re.findall(r"\b[A-Z_]+_(?:PRODUCT|JOIN)\b", plan["explain_value"]))
    assert operators <= {"HASH_JOIN", "RIGHT_DELIM_JOIN", "LEFT_DELIM_JOIN"}, plan["explain_value"]
