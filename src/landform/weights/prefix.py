"""Stub while it is written."""

from __future__ import annotations

from typing import Any

__all__ = ["insert"]


def insert(model: Any, **_: Any) -> set[str]:
    raise NotImplementedError
