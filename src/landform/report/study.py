"""The report of a study directory: every result kept there, in one page."""

from __future__ import annotations

from pathlib import Path

from landform.errors import StoreError
from landform.report.atlas import write_atlas
from landform.report.figures import save_all
from landform.store.artifacts import Store
from landform.store.atomic import check_place
from landform.store.study import load_results

__all__ = ["write_report"]


def write_report(
    study: Path, *, out: Path | None = None, figures: Path | None = None, title: str | None = None
) -> list[Path]:
    """Write the atlas of `study` (and, if asked, its figures as PDF); the files written."""
    if figures is not None:
        check_place(figures / "figure.pdf")
    store = Store.open(study, create=False)
    results = load_results(store)
    if not results:
        raise StoreError(
            f"{study} holds no results yet",
            remedy="run landform connect, evaluate or interpolate with --store first",
        )
    provenance = {name: store.published_manifest(name) for name in results}
    path = write_atlas(
        out or study / "atlas.html",
        results,
        title=title or study.resolve().name,
        provenance=provenance,
    )
    return [path, *(save_all(results, figures) if figures is not None else ())]
