"""The package that `docs/your_own_trainer.md` builds, read from its blocks: it stands there and nowhere else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import ModuleType

_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "your_own_trainer.md"


def package_files() -> dict[str, str]:
    """The files of the package, as the document tells its reader to write them."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    python = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    [settings] = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    [suite] = [block for block in python if "class TestUnigram(" in block]
    return {"unigram.py": "\n\n".join(python[:3]), "pyproject.toml": settings, "test_unigram.py": suite}


@cache
def unigram() -> ModuleType:
    """The package's module, without installing it."""
    module = ModuleType("unigram")
    exec(compile(package_files()["unigram.py"], str(_DOCUMENT), "exec", dont_inherit=True), vars(module))
    return module
