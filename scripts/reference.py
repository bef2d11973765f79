"""Write the API reference: one HTML page per module, from the docstrings.

    make reference                    # build/reference/index.html
    python scripts/reference.py OUT [MODULE ...]

pdoc does the work. What is added here: every function that takes `**options` names the config that
holds them, and each such name becomes a link to the page that explains its fields.
"""

from __future__ import annotations

import html
import pkgutil
import re
import sys
from pathlib import Path

import pdoc
import pdoc.render

import landform


def parts() -> list[str]:
    """The package and what stands in its first row; the command line has its own help."""
    found = sorted(module.name for module in pkgutil.iter_modules(landform.__path__, "landform."))
    return ["landform", *(name for name in found if name.split(".")[1] not in ("cli", "__main__"))]


def config_pages() -> dict[str, str]:
    """Name of every config class -> its place in the reference."""
    from landform.config import Config

    for module in pkgutil.walk_packages(landform.__path__, "landform."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
    found: dict[str, str] = {}
    waiting: list[type[Config]] = [Config]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("landform."):
            found[kind.__name__] = f"{kind.__module__.replace('.', '/')}.html#{kind.__name__}"
    return found


def link_configs(text: str, pages: dict[str, str], depth: int) -> str:
    """The page with each config named in it as a link; `depth` folders below the root."""

    def linked(found: re.Match[str]) -> str:
        page = pages.get(html.unescape(found[1]))
        return f'<a href="{"../" * depth}{page}">{found[0]}</a>' if page else found[0]

    # What pdoc itself could resolve is a link already.
    return re.sub(r'(?<!">)<code>(\w+)</code>', linked, text)


def write_reference(out: Path, modules: list[str]) -> None:
    """The pages of these modules and of all below them, in the directory `out`."""
    pdoc.render.configure(docformat="numpy", show_source=False, footer_text=landform.__version__)
    pdoc.pdoc(*modules, output_directory=out)
    pages = config_pages()
    for page in sorted(out.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        depth = len(page.relative_to(out).parts) - 1
        page.write_text(link_configs(text, pages, depth), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    write_reference(target, sys.argv[2:] or parts())
    print(f"wrote {target / 'index.html'}")
