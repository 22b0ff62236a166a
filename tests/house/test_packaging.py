"""Packaging: what is installed is what stands in the folders, with or without links."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOMS = ("adapters", "grouping", "tracer", "trainers")


@pytest.fixture(scope="module")
def setuptools_table(repository):
    """How pyproject.toml maps packages to folders."""
    return tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders_with_code(repository: Path) -> dict[str, str]:
    """Package names and the folders they stand in, as a reader of the tree would say."""
    roots = {"tracetune": repository / "src/tracetune"} | {f"tracetune.{room}": repository / room for room in ROOMS}
    return {
        ".".join([package, *file.parent.relative_to(root).parts]): str(file.parent.relative_to(repository))
        for package, root in roots.items()
        for file in root.glob("**/__init__.py")  # does not follow the links
        if not (package == "tracetune" and file.relative_to(root).parts[0] in ROOMS)
    }


def test_every_folder_with_code_is_a_package(repository, setuptools_table):
    """pyproject.toml lists each package once, and maps it to the folder it stands in."""
    assert setuptools_table["package-dir"] == folders_with_code(repository)
    assert sorted(setuptools_table["packages"]) == sorted(folders_with_code(repository))


@pytest.mark.parametrize("room", ROOMS)
def test_links_show_type_checkers_the_same_tree(repository, room):
    """Each folder at the root is also seen under src/tracetune, by a relative link."""
    assert (repository / "src/tracetune" / room).readlink() == Path("../..") / room


def copy_without_links(repository: Path, to: Path) -> Path:
    """The tree as an archive that knows no links gives it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ROOMS:
        shutil.copytree(repository / room, to / room, ignore=ignored)
    shutil.copytree(repository / "src", to / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", *ROOMS))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / file, to)
    return to


def build(tree: Path, kind: str) -> Path:
    """Build a wheel or an sdist of a tree with the installed setuptools."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tree / "dist" / done.stdout.splitlines()[-1]


def code_in(wheel: Path) -> list[str]:
    """What a wheel installs, its own metadata apart."""
    return sorted(name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info"))


def code_in_folders(repository: Path) -> list[str]:
    """What stands in the folders, under the names it is to be installed as."""
    return sorted(
        f"{package.replace('.', '/')}/{file.relative_to(repository / folder)}"
        for package, folder in folders_with_code(repository).items()
        for file in (repository / folder).glob("**/*")
        if file.is_file()
        and "__pycache__" not in file.parts
        # Packages inside this one speak for themselves.
        and not any(
            (parent / "__init__.py").exists() for parent in file.parents if (repository / folder) in parent.parents
        )
    )


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    """A wheel built from a checkout with links."""
    tree = copy_without_links(repository, tmp_path_factory.mktemp("linked"))
    for room in ROOMS:
        (tree / "src/tracetune" / room).symlink_to(Path("../..") / room)
    return build(tree, "wheel")


def test_a_wheel_holds_what_the_folders_hold(repository, wheel):
    """No module, query, migration or model file is left behind, and nothing else comes along."""
    assert code_in(wheel) == code_in_folders(repository)


def test_a_source_distribution_gives_the_same_wheel_without_links(repository, wheel, tmp_path):
    """Links are for tools: a checkout that lost them, and an sdist of it, install the same files."""
    sdist = build(copy_without_links(repository, tmp_path), "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [tree] = (tmp_path / "unpacked").iterdir()
    assert code_in(build(tree, "wheel")) == code_in(wheel)


IMPORT_EVERYTHING = """
import sys
import tracetune.cli

for name in tracetune.__all__:
    getattr(tracetune, name)
for name, module in sys.modules.items():
    if name.split(".")[0] == "tracetune":
        print(module.__file__)
"""


def test_an_unpacked_wheel_works(wheel, tmp_path):
    """Every public name can be imported from the wheel alone."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [file for file in done.stdout.split() if not file.startswith(str(tmp_path))] == []


WITHOUT_DEVELOPMENT = """
import sys
from importlib.machinery import PathFinder


class Requirements(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name in ("datasets", "hypothesis", "pandas", "polars", "pytest", "trl")
        return None if hidden else PathFinder.find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Requirements

import tracetune.cli

call = {"module": "hop", "prompt_token_ids": [1], "completion_token_ids": [2], "completion_logprobs": [-0.5]}
store = tracetune.Store("traces.duckdb")
store.add_rollouts([{"example_id": "q1", "reward": reward, "calls": [call]} for reward in (0.0, 1.0)])
print(store.groups(tracetune.Grouping()).n_members)
import tracetune.demo.command, tracetune.trainers.endpoint, tracetune.trainers.local

query = "SELECT kind, count(*), max(started_at) FROM spans GROUP BY kind ORDER BY kind"  # times in nanoseconds
tracetune.cli.main(["sql", "traces.duckdb", query])
"""


def test_nothing_needs_what_only_developers_install(tmp_path):
    """Storing, grouping, asking and loading every part work without the packages of the `dev` extra."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEVELOPMENT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counted, _, _, *rows = (line.split() for line in done.stdout.splitlines())
    assert counted == ["2"]
    assert [row[:2] for row in rows] == [["lm", "2"], ["module", "2"], ["program", "2"]]
