"""How property tests run: by one profile, in which no example is too slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, is_hypothesis_test, settings
from hypothesis import strategies as st


@given(st.integers())
def test_a_property_test_without_settings_has_no_deadline(number: int) -> None:
    """A property test that names no settings runs by the suite's profile."""
    assert settings().deadline is None


def test_no_property_test_of_this_run_has_a_deadline(request: pytest.FixtureRequest) -> None:
    """Whatever settings a property test names, its examples may take as long as the machine needs."""
    functions = {item.nodeid: getattr(item, "obj", None) for item in request.session.items}
    properties = {
        name: function for name, function in functions.items() if callable(function) and is_hypothesis_test(function)
    }
    assert any(name.endswith("test_a_property_test_without_settings_has_no_deadline") for name in properties)
    assert {
        name: deadline
        for name, function in properties.items()
        if (deadline := function._hypothesis_internal_use_settings.deadline) is not None  # type: ignore[attr-defined]
    } == {}


def test_a_slow_example_passes_in_a_module_that_names_no_settings(repository: Path, tmp_path: Path) -> None:
    """An example that takes longer than hypothesis' own deadline of 200 ms does not fail its test."""
    test = tmp_path / "test_slow.py"
    test.write_text(
        "import time\n"
        "from hypothesis import given, settings, strategies as st\n"
        "@settings(max_examples=2)\n"
        "@given(st.booleans())\n"
        "def test_slow(value):\n"
        "    time.sleep(0.3)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    conftest = f"--confcutdir={tmp_path}"
    (tmp_path / "conftest.py").write_text((repository / "tests" / "conftest.py").read_text())
    done = subprocess.run([*command, conftest, str(test)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout
