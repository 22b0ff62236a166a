"""Imports: what `import tracetune` costs, and which part may know which."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import tracetune

HEAVY = ("torch", "transformers", "duckdb", "openai", "litellm", "langchain", "dspy", "trl", "peft", "pyarrow")


@pytest.mark.parametrize("module", ["tracetune", "tracetune.tracer", "tracetune.types", "tracetune.cli"])
def test_an_import_brings_in_nothing_heavy(module):
    """Importing the package, its tracer or its command line loads no library that is slow to load."""
    code = f"import sys, {module}; print(*sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_has_a_home():
    """The list of public names, the table of their homes and what `dir` shows agree, and every name resolves."""
    assert tracetune.__all__ == sorted(tracetune._HOMES)
    assert dir(tracetune) == sorted([*tracetune.__all__, "__version__"])
    for name, home in tracetune._HOMES.items():
        module = import_module(home)
        assert getattr(tracetune, name) is getattr(module, name)
        assert name in getattr(module, "__all__", [name]), f"{home} does not offer {name}"


def test_no_public_name_is_also_a_module():
    """Importing `tracetune.x` anywhere puts that module in place of a public `x`, so no module may be called so."""
    assert [name for name in tracetune.__all__ if find_spec(f"tracetune.{name}") is not None] == []


def test_a_name_that_is_not_there_is_an_attribute_error():
    """A misspelt name says what was asked of which module."""
    with pytest.raises(AttributeError, match="module 'tracetune' has no attribute 'modul'"):
        tracetune.modul  # noqa: B018  the look-up is the test


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """import-linter's verdict on the tree that stands under a root."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        env={"PYTHONPATH": str(root / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_point_down(repository):
    """Every import contract in pyproject.toml is kept."""
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("tracer/names.py", "import tracetune.grouping", "Imports point down"),
        ("trainers/__init__.py", "import tracetune.tracer", "Trainers know types, errors and rows only"),
        ("adapters/__init__.py", "import duckdb", "duckdb stays in grouping"),
        ("grouping/__init__.py", "import torch", "Learning libraries stay in trainers and the demo"),
    ],
)
def test_an_import_that_points_up_is_caught(repository, tmp_path, file, line, contract):
    """The contracts see through the links: a forbidden import in a folder at the root breaks one."""
    for folder in ("src", "tracer", "grouping", "trainers", "adapters"):
        shutil.copytree(repository / folder, tmp_path / folder, symlinks=True)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout


@pytest.mark.parametrize("folder", ["tracer", "grouping", "trainers", "adapters"])
def test_bare_folder_names_are_banned(repository, folder):
    """`import adapters` belongs to another package: ruff refuses it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ruff"), "check", "--select", "TID251", "--stdin-filename", "x.py", "-"],
        cwd=repository,
        input=f"import {folder}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"`{folder}` is banned" in done.stdout


def modules_of(repository: Path) -> dict[str, Path]:
    """Every module of tracetune by its name, as the folders of the repository hold them."""
    homes = {f"tracetune.{room}": repository / room for room in ("tracer", "grouping", "trainers", "adapters")}
    homes["tracetune"] = repository / "src" / "tracetune"
    return {
        ".".join((home, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
        for home, folder in homes.items()
        for path in folder.rglob("*.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }


def imports_of(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules that a file imports, also inside functions and for its types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {
                name if (name := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(modules)


def test_no_modules_import_each_other_in_a_circle(repository):
    """A module can be read before those that import it; imports in functions and under TYPE_CHECKING count."""
    modules = modules_of(repository)
    assert len(modules) > 200
    TopologicalSorter({name: imports_of(path, modules) for name, path in modules.items()}).prepare()


def test_windows_is_refused_in_a_sentence():
    """Where Python has no file locks of POSIX, what needs them says so when it is imported."""
    code = "import sys; sys.modules['fcntl'] = None; import tracetune.tracer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "tracetune.errors.UnsupportedSystem: tracetune records on Linux and macOS, whose file locks it needs; on "
        "Windows, run it inside WSL"
    )
