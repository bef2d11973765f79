"""Every code block of the documentation runs, links lead somewhere, figures have their commands.

`doc_pages` says how a page is read. Tiny checkpoints and files lie under the names that the pages
use (`place` below); each page gets a copy of its own. There `--task embedded` has a few dozen rows,
and the runs of seeds are models of whatever task a block asks for.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import random
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from doc_pages import COMMANDS, PAGES, ROOT, Block, blocks, images, prose, runnable
from span_models import save_t5
from text_models import save_text_model, toy_folder

# --- what the pages find on disk ------------------------------------------------------------------

SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "non-entailment")  # of the embedded task
GOOGLE = ("contradiction", "entailment", "neutral")  # not the order of the task


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any, save_checkpoint: Any) -> Path:
    root: Path = tmp_path_factory.mktemp("docs")
    for i in range(8):
        save_checkpoint(root / "runs" / f"seed{i}", seed=i, **labels(SENTIMENT))
    save_checkpoint(root / "unnamed", seed=5)
    for name in ("pretrained", "encoder"):
        save_checkpoint(root / name, kind="masked-lm", seed=6)
    for i in range(2):
        save_checkpoint(root / "mnli" / f"seed{i}", seed=10 + i, num_labels=3, **labels(GOOGLE))
    for i, name in enumerate(("a.tsv", "b.tsv", "train.tsv", "dev.tsv", "ood.tsv")):
        write_reviews(root / name, 40, seed=i)
    (root / "GLUE" / "SST-2").mkdir(parents=True)
    for i, name in enumerate(("train.tsv", "dev.tsv")):
        write_reviews(root / "GLUE" / "SST-2" / name, 40, seed=10 + i, codes=True)
    for i, name in enumerate(("seed0", "seed1")):
        save_text_model(root / "runs-t5" / name, "t5-v1.1", i)
    toy_folder(root / "toy-nli", name="toy-nli")
    save_t5(root / "t5")
    generator = random.Random(9)
    for name, gap in (("corpus.txt", ""), ("held.txt", ""), ("articles.txt", "\n")):
        texts = [f"{words(generator)}\n{gap}" for _ in range(40)]
        (root / name).write_text("".join(texts), encoding="utf-8")
    write_pairs(root / "pairs.csv", 24)
    write_hans(root / "HANS" / "heuristics_evaluation_set.txt")
    return root


def labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def words(generator: random.Random) -> str:
    return " ".join(f"w{generator.randrange(40)}" for _ in range(generator.randint(2, 9)))


def write_reviews(path: Path, rows: int, seed: int, codes: bool = False) -> None:
    """Columns sentence, label and source; labels by name, or by code as in GLUE's files."""
    generator = random.Random(seed)
    names = ("0", "1") if codes else ("negative", "positive")
    lines = ["sentence\tlabel\tsource"]
    for i in range(rows):
        source = "critics" if i % 3 else "readers"
        lines.append(f"{words(generator)}\t{names[generator.randrange(2)]}\t{source}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_pairs(path: Path, rows: int) -> None:
    generator = random.Random(7)
    lines = ["uid,premise,hypothesis,label"]
    for i in range(rows):
        label = ("entailment", "neutral", "contradiction")[i % 3]
        lines.append(f"p{i},{words(generator)},{words(generator)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_hans(path: Path) -> None:
    generator = random.Random(8)
    lines = ["gold_label\tsentence1\tsentence2\tpairID\theuristic\tsubcase\ttemplate"]
    for i in range(36):
        heuristic = ("lexical_overlap", "subsequence", "constituent")[i % 3]
        gold = ("entailment", "non-entailment")[i // 3 % 2]
        row = (gold, words(generator), words(generator), f"ex{i}", heuristic, f"case{i % 6}", "t1")
        lines.append("\t".join(row))
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- running the pages ----------------------------------------------------------------------------


@pytest.fixture
def few_rows(monkeypatch: Any) -> None:
    """The embedded task with few rows of each kind."""
    import landform.tasks.embedded as embedded

    few = dataclasses.replace(embedded.STUDY, train_rows=40, validation_rows=16, heuristic_rows=60)
    monkeypatch.setattr(embedded, "STUDY", few)


def absent(page: Path) -> Any:
    """Most pages need four runs of the eight; pairs of them all take long."""
    text = page.read_text(encoding="utf-8")
    spare = {f"seed{i}" for i in range(4, 8)}
    return shutil.ignore_patterns(*(name for name in sorted(spare) if name not in text))


def name_labels(block: Block) -> None:
    """Runs have the labels of the embedded task in blocks that name it, else the reviews'."""
    names = labels(ENTAILMENT if "embedded" in block.text else SENTIMENT)
    for path in Path("runs").glob("seed[0-7]/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if len(config.get("id2label", ())) == len(names["id2label"]):
            path.write_text(json.dumps({**config, **names}), encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*generated answers were cut")
@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize("page", list(filter(runnable, PAGES)), ids=lambda page: page.name)
def test_the_page_runs(page: Path, place: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True, ignore=absent(page))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANDFORM_PROGRESS", "0")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in runnable(page):
        where = f"{page.name}:{block.line}"
        name_labels(block)
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.language == "pycon":
            run_doctest(block, names, where)
        else:
            run_commands(block, where, capsys)
    close_figures()


def run_commands(block: Block, where: str, capsys: Any) -> None:
    from landform.cli.app import run

    for words in block.commands():
        command = shlex.join(words)
        assert words[0] == "landform", f"{where}: only landform commands run: {command}"
        capsys.readouterr()
        status = run(words[1:])
        captured = capsys.readouterr()
        assert status == 0, f"{where}: {command}\n{captured.err}"
        if "--json" in words:
            json.loads(captured.out)
    for name in block.writes():
        assert Path(name).is_file(), f"{where}: {name} was not written"


def run_doctest(block: Block, names: dict[str, Any], where: str) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, names, where, None, block.line - 1)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, f"{where}\n{''.join(said)}"


def close_figures() -> None:
    import matplotlib.pyplot as plt

    plt.close("all")


# --- the pages themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_that_do_not_run_say_why(page: Path):
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        assert block.language, f"{where}: the block names no language (text for output)"
        if block.mark.startswith("not run"):
            reason = block.mark.removeprefix("not run").removeprefix(":").strip()
            assert len(reason) > 5, f"{where}: say why the block is not run"
    fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.M)
    assert len(fences) == 2 * len(blocks(page)), f"{page.name}: a block was not recognised"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), re.M)
    return {
        re.sub(r"[^\w\- ]", "", title.lower().replace("`", "")).replace(" ", "-")
        for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target} does not exist"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target} has no such heading"


def test_every_page_is_on_the_map():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "index.md" or f"({page.name}" in text, f"{page.name}: not in index.md"


# Commands whose page has another name than theirs; the exchange of files shares one.
PAGE_OF = {
    "barrier": "barrier-influence",
    "completion": "command-line",
    "curve": "curves",
    "demo": "embedded",
    "figure": "figures",
    "mix": "mixing",
    "run": "study-files",
    **dict.fromkeys(("import", "export", "convert", "models", "push"), "interchange"),
}


def test_every_command_has_a_page_that_says_how_to_read_it():
    """`docs/COMMAND.md`, or as above: one of its first blocks runs the command (on a shared page
    any block), and a heading starts with "How to read"."""
    from landform.cli.app import app

    missing = []
    for command in [name for name in app if not name.startswith("-")]:
        name = PAGE_OF.get(command, command)
        page = ROOT / "docs" / f"{name}.md"
        if not page.exists():
            missing.append(f"{command}: there is no docs/{page.name}")
            continue
        shells = [block for block in blocks(page) if block.language in COMMANDS]
        first = shells if list(PAGE_OF.values()).count(name) > 1 else shells[:2]
        if not any(re.search(rf"^(?:\$ )?landform {command}\b", b.text, re.M) for b in first):
            missing.append(f"{command}: the first blocks of {page.name} do not run it")
        if not re.search(r"^#+ How to read", prose(page), re.M):
            missing.append(f"{command}: no heading of {page.name} says how to read it")
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("page", list(filter(images, PAGES)), ids=lambda page: page.name)
def test_an_image_is_made_by_a_command_of_its_page(page: Path):
    """Or a comment right above it, `<!-- image: ... -->`, says how it was made."""
    written = set().union(*(block.writes() for block in blocks(page)))
    for image in images(page):
        where = f"{page.name}:{image.line}"
        if image.reason:
            assert len(image.reason) > 15, f"{where}: say how {image.name} was made"
            continue
        assert image.name in written, (
            f"{where}: no command of this page writes {image.name} (--figure or --out);"
            " write one and run scripts/page_figures.py, or say above the image how it was"
            " made: <!-- image: ... -->"
        )
        size = (page.parent / image.path).stat().st_size
        assert size <= 120_000, f"{where}: {image.name} is large, {size:,} bytes"
