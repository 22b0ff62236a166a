"""Logs are imported by the command line."""

from cli.conftest import tracetune

__all__ = ["tracetune"]
