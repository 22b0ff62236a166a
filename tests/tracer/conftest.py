"""A store path whose spool the tests read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store would stand."""
    return tmp_path / "traces.duckdb"


@pytest.fixture
def spool(store: Path) -> Path:
    """Its spool."""
    return store.with_name(f"{store.name}.spool")
