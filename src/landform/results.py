"""What every result object can do: say its reading in a line, become JSON, draw itself."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result"]


class Result:
    """Base of result objects.

    A subclass is a frozen dataclass that defines `reading` (one line for a person) and
    `to_json` (plain Python values for a machine).
    """

    @property
    def reading(self) -> str:
        """One line that says what the result means, with its interval."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        raise NotImplementedError

    def plot(self, **options: Any) -> Figure:
        """The result's main figure (see `landform.report.figures` for all of them)."""
        # Looked up by name at call time: figures live on a floor above the results they draw,
        # and people who never draw should not pay for importing matplotlib.
        figures = importlib.import_module("landform.report.figures")
        figure: Figure = figures.draw(self, **options)
        return figure
