"""The command line: thin, one file per command, no logic."""

from __future__ import annotations

from landform.cli.app import main

__all__ = ["main"]
