"""The Makefile: sets itself up once, and says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def checkout(repository, tmp_path):
    """A checkout whose .venv was filled after pyproject.toml and constraints.txt were last changed."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(repository / file, tmp_path)
        os.utime(tmp_path / file, (1_000_000, 1_000_000))
    for file in (".venv/bin/python", ".venv/local.installed", ".venv/dev.installed"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What make says, whether or not another make runs this test."""
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        ["make", *arguments], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


def plan(checkout: Path, target: str) -> str:
    """What make would run."""
    done = make(checkout, "-n", target)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["test", "demo"])
def test_a_second_run_installs_nothing(checkout, target):
    """With everything in place, a target only does its work; when a requirement changes it installs again."""
    assert plan(checkout, target).count(" install ") == 0
    os.utime(checkout / "constraints.txt")
    assert plan(checkout, target).count(" install ") == 1


def test_the_tests_need_more_than_the_demo(checkout):
    """After `make demo` alone, `make test` adds the development requirements to the same .venv."""
    (checkout / ".venv/dev.installed").unlink()
    assert " install " not in plan(checkout, "demo")
    assert "-e '.[dev]'" in plan(checkout, "test")


def test_a_machine_without_python_is_told_what_to_do(checkout):
    """Where no interpreter is new enough, one sentence says so and nothing is made."""
    shutil.rmtree(checkout / ".venv")
    done = make(checkout, "demo", "PYTHON=no-such-python")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == (
        "error: no Python 3.11 or newer with venv was found; install one, or name it with PYTHON=/path/to/python3"
    )
    assert not (checkout / ".venv").exists()
