"""Documents: what README and docs show is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from house.markdown_blocks import DOCUMENTS, REPOSITORY, WrongDocument, blocks_of, check_output, run_blocks
from opentelemetry import trace
from opentelemetry.util._once import Once

import tracetune


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_does_what_it_shows(document, tmp_path, monkeypatch):
    """Every block of a document runs, in order, and prints what the document says."""
    monkeypatch.chdir(tmp_path)
    # A document may set the process's tracer provider, which OpenTelemetry allows once.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
    run_blocks(blocks_of(document), tmp_path)


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"],
    ids=lambda path: path.name,
)
def test_links_between_documents_lead_somewhere(document):
    """A relative link in a document, or a path under docs/ that it names, is a file that exists."""
    text = document.read_text(encoding="utf-8")
    linked = {document.parent / target for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)}
    named = {REPOSITORY / target for target in re.findall(r"`((?:docs|examples|benchmarks)/[\w./-]+)`", text)}
    assert [str(target) for target in sorted(linked | named) if not target.exists()] == []


def test_the_readme_names_everything_public(repository):
    """Each public name earns its place in the README."""
    words = set(re.findall(r"\w+", (repository / "README.md").read_text(encoding="utf-8")))
    assert [name for name in tracetune.__all__ if name not in words] == []


def written(folder: Path, text: str) -> Path:
    """A document with that text."""
    path = folder / "document.md"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = """
Words.
```python
number = 1
```
More words.
```python
print(number + 1, 0.123)
```

```text
2 0.…
```
<!-- not run: takes a week -->
```python
raise RuntimeError
```
```text
a picture, since what stands above is not run
```
Words.
```text
a picture of its own
```
```console
$ echo one; echo two
one
two
$ tracetune --help | head -n 1
Usage: tracetune …
```
"""


def test_the_blocks_of_a_document(tmp_path):
    """Blocks are found with their line, their excuse and what they print; pictures and other languages are not run."""
    found = [(block.line, block.language, block.not_run, block.prints) for block in blocks_of(written(tmp_path, GOOD))]
    assert found == [
        (3, "python", None, None),
        (7, "python", None, "2 0.…\n"),
        (15, "python", "takes a week", "a picture, since what stands above is not run\n"),
        (25, "console", None, None),
    ]
    run_blocks(blocks_of(tmp_path / "document.md"), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(1)\n```\n```text\n2\n```",
        "```python\nprint(1)\n```\nwhich prints\n```output\n2\n```",
        "```console\n$ echo 1\n2\n```",
        "```console\n$ exit 3\n```",
        "```output\n2\n```",
    ],
)
def test_a_document_that_lies_is_found_out(tmp_path, text):
    """Another output, a command that fails and output that belongs to nothing are each refused."""
    with pytest.raises(WrongDocument):
        run_blocks(blocks_of(written(tmp_path, text)), tmp_path)


def test_an_ellipsis_stands_for_anything_and_nothing_else_does():
    """Dots and brackets in shown output are themselves."""
    check_output("here", "step 1…done.", "step 1\nstep 2\ndone.\n")
    with pytest.raises(WrongDocument):
        check_output("here", "a.b", "axb")
