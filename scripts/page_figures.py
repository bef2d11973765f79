"""Make the figures of the documentation, each by the command of its own page.

    python scripts/page_figures.py --demo landform-demo            # all pages
    python scripts/page_figures.py --demo landform-demo connect surface

`--demo` is the directory of a finished `landform demo`. It is copied, and nothing is written there.

On the page, write the image and, in the same page, the command that makes it:

    ![Convexity gaps between the eight seeds](images/connect.png)

    ```bash
    landform connect 'runs/seed*' --task embedded --also embedded:heuristics --store study
    landform figure study connect --which heatmap --out connect.png
    ```

Give an image the name of its page (connect.png, connect-curves.png), write `--figure` or `--out`
with a space before the bare name, and end with `.png`. Every command that the figure needs stands
in the block that writes it, or in an earlier block of the page that writes an image or names
the task `embedded`: those blocks are run, in their order, in a directory that has

    runs/seed0 ... runs/seed7   the eight runs of the demo; their task is `--task embedded`
    study                       a study without results that holds the demo's evaluations; what was
                                evaluated there, with `--also embedded:heuristics`, takes seconds
    landform-demo               the demo itself: `landform figure landform-demo connect` works
    encoder                     the small encoder of the package, from which the demo was trained
    whatever `<!-- file: NAME -->` blocks of the page write

Blocks marked `<!-- not run: ... -->` are run here only where they write an image. Each page has a
fresh directory (`--keep DIR` leaves it there). What the commands print is shown, for the page's
text. The images go to docs/images at 150 dots per inch; more than 120 kB each is an error.

A figure of something else than the demo (another corpus, a large model) has a comment right above
it in place of a command: `<!-- image: how it was made -->`.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

from PIL import Image

from doc_pages import PAGES, ROOT, Block, blocks, images

IMAGES = ROOT / "docs" / "images"
STYLE = "savefig.dpi: 150\n"
MOST = 120_000  # bytes of an image
DEMO = ("runs", "artifacts", "results", "study.json")


def make_place(demo: Path, place: Path) -> None:
    """A copy of the demo; its runs, a study with its evaluations, and the encoder beside it."""
    from landform.embedded import encoder_path

    copy = place / "landform-demo"
    shutil.copytree(demo, copy, ignore=shutil.ignore_patterns("*.html", "figures"))
    shutil.copytree(copy / "runs", place / "runs")
    shutil.copytree(encoder_path(), place / "encoder")
    shutil.copytree(copy / "artifacts", place / "study" / "artifacts")
    shutil.copy2(copy / "study.json", place / "study" / "study.json")


def needed(found: list[Block], wanted: set[str]) -> list[Block]:
    """The blocks that make the images of a page, up to the last that does."""
    last = max((n for n, block in enumerate(found) if block.writes() & wanted), default=-1)
    return [
        block
        for block in found[: last + 1]
        if block.file
        or block.writes() & wanted
        or (block.runs and any("embedded" in " ".join(words) for words in block.commands()))
    ]


def run_block(block: Block, page: Path) -> None:
    """Write the block's file, or run its commands, in the working directory."""
    from landform.cli.app import run

    if block.file:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text, encoding="utf-8")
    for words in block.commands():
        print(f"$ {shlex.join(words)}", flush=True)
        started = time.monotonic()
        if words[0] != "landform" or run(words[1:]) != 0:
            raise SystemExit(f"{page.name}:{block.line}: this command failed: {shlex.join(words)}")
        print(f"({time.monotonic() - started:.1f} s)\n", flush=True)


def shrunk(path: Path) -> bytes:
    """A PNG with a palette of 256 colours, which figures do not miss."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        flat = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=0)
    flat.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def make(page: Path, place: Path) -> list[Path]:
    """Run a page's commands in `place`; the images that were written to docs/images."""
    from landform.report.style import using

    wanted = {image.name for image in images(page) if not image.reason}
    found = needed(blocks(page), wanted)
    missing = wanted - set().union(*(block.writes() for block in found))
    if missing:
        raise SystemExit(f"{page.name}: no command writes {', '.join(sorted(missing))}")
    style = place / "page.mplstyle"
    style.write_text(STYLE, encoding="utf-8")
    before = Path.cwd()
    os.chdir(place)
    try:
        with using(style):
            for block in found:
                run_block(block, page)
    finally:
        os.chdir(before)
    written = []
    for name in sorted(wanted):
        content = shrunk(place / name)
        if len(content) > MOST:
            raise SystemExit(f"{page.name}: {name} has {len(content):,} bytes, over {MOST:,}")
        IMAGES.mkdir(exist_ok=True)
        (IMAGES / name).write_bytes(content)
        print(f"docs/images/{name}: {len(content):,} bytes\n", flush=True)
        written.append(IMAGES / name)
    return written


def main() -> None:
    """Read the command line, and make the figures of the pages that it names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", help="names of pages (connect); default: all")
    parser.add_argument("--demo", type=Path, required=True, help="a finished `landform demo`")
    parser.add_argument("--keep", type=Path, help="work below this directory, and leave it there")
    given = parser.parse_args()
    by_name = {page.stem: page for page in PAGES}
    names = [name.removesuffix(".md") for name in given.pages] or list(by_name)
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"no such page: {', '.join(unknown)}")
    if absent := [name for name in DEMO if not (given.demo / name).exists()]:
        parser.error(f"{given.demo} is no finished demo: it has no {', '.join(absent)}")
    os.environ["LANDFORM_PROGRESS"] = "0"
    for name in names:
        if not any(not image.reason for image in images(by_name[name])):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            place = given.keep / name if given.keep else Path(temporary)
            place.mkdir(parents=True, exist_ok=True)
            make_place(given.demo.resolve(), place.resolve())
            make(by_name[name], place.resolve())


if __name__ == "__main__":
    main()
