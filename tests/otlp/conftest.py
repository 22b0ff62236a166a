"""The command line, as its own tests run it."""

from __future__ import annotations

from cli.conftest import tracetune

__all__ = ["tracetune"]  # a fixture
