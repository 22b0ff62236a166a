"""The package that `docs/your_own_trainer.md` builds, read from its blocks: it stands there and nowhere else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import ModuleType

_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "your_own_trainer.md"


def package_files() -> dict[str, str]:
    """The files of the package, as the document tells its reader to write them."""
    python = _blocks("python")
    [settings] = _blocks("toml")
    [suite] = [block for block in python if "class TestUnigram(" in block]
    return {"unigram.py": "\n\n".join(python[:3]), "pyproject.toml": settings, "test_unigram.py": suite}


def best_of_group() -> type:
    """The trainer that inherits from the local one, of the document's last section."""
    values = dict(vars(unigram()))
    exec(compile(_blocks("python")[-1], str(_DOCUMENT), "exec", dont_inherit=True), values)
    return values["BestOfGroup"]


@cache
def unigram() -> ModuleType:
    """The package's module, without installing it."""
    module = ModuleType("unigram")
    exec(compile(package_files()["unigram.py"], str(_DOCUMENT), "exec", dont_inherit=True), vars(module))
    return module


def _blocks(language: str) -> list[str]:
    text = _DOCUMENT.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
