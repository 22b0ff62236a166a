"""The tutorial's trainer as a package of its own: built, installed and found by its name, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from unigram_package import package_files


def run(*arguments: str, folder: Path, installed: Path) -> subprocess.CompletedProcess[str]:
    """A Python command with the package's target on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of its sources, and the one it is installed into."""
    folder, installed = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("installed")
    for name, text in package_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    offline = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(installed))
    done = run("-m", "pip", "install", *offline, ".", folder=folder, installed=installed)
    assert done.returncode == 0, done.stderr
    return folder, installed


MAKE = """
from tracetune.trainers import make_trainer, trainer_names

trainer = make_trainer("unigram", learning_rate=1.0)
print("unigram" in trainer_names(), type(trainer).__module__, trainer.learning_rate)
"""


def test_an_installed_trainer_is_found_by_its_name(package, tmp_path):
    """`make_trainer` gives the package's class, made with the settings it was given."""
    done = run("-c", MAKE, folder=tmp_path, installed=package[1])
    assert (done.stdout, done.stderr) == ("True unigram 1.0\n", "")


def test_an_installed_trainer_passes_its_suite(package):
    """The package's own tests run where it is installed, and each check of the suite passes."""
    folder, installed = package
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_unigram.py", folder=folder, installed=installed)
    assert "30 passed" in done.stdout, done.stdout + done.stderr
