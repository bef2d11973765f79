"""The `landform` command and how it speaks: help, errors, exit status.

Exit status: 0 done; 1 a `LandformError` (what is wrong and what to do are on standard error);
2 the command line itself could not be understood; 130 interrupted.
"""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO

from cyclopts import App, CycloptsError, Parameter

from landform.errors import LandformError

__all__ = ["app", "main"]

_HELP = """\
Which basin a fine-tuned language model landed in, and what the loss surface around it looks like.

A checkpoint is a directory (runs/seed0), a step of a run (runs/seed0@300), a hub model (org/name) \
or one at a revision (org/name@main).

Start with: landform demo
"""

app = App(
    name="landform",
    help=_HELP,
    help_format="plaintext",
    help_flags=["--help", "-h"],
    # `--seeds 0 1 2` as well as `--seeds 0 --seeds 1`; no `--empty-seeds`, which nobody looks for.
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)

# Commands are imported when they run: `landform --help` should not wait for torch. So their help
# stands here: the first line is what the list of commands shows, the example is for their own page.
_COMMANDS = {
    "train": (
        "Fine-tune a model with many seeds.",
        "landform train org/pre-trained --task sst2 --seeds 0 1 2 --out runs",
        "landform train DIR --files.train train.tsv --files.validation dev.tsv --text sentence "
        "--label label --out runs",
    ),
    "evaluate": (
        "Evaluate checkpoints: metrics with intervals, per-example log, subsets.",
        "landform evaluate runs/seed0 --task sst2 --store study",
        "landform evaluate runs/seed0 --task dev.tsv --text sentence --label label",
    ),
    "interpolate": (
        "Walk the straight line between two checkpoints.",
        "landform interpolate runs/seed0 runs/seed1 --task sst2 --figure line.png",
    ),
    "ridge": (
        "Which examples rise between two checkpoints, and by how much?",
        "landform ridge runs/seed0 runs/seed1 --task sst2 --store study",
    ),
    "connect": (
        "Lines between all pairs of many checkpoints: barriers, gaps, basins.",
        "landform connect 'runs/seed*' --task sst2 --store study",
    ),
    "surface": (
        "The plane through three checkpoints, or random directions around one.",
        "landform surface --through runs/seed0 runs/seed1 runs/seed2 --task sst2",
        "landform surface --around runs/seed0 --directions random --task sst2 --store study",
    ),
    "align": (
        "Reorder the hidden units of one checkpoint to lie next to another; its function stays.",
        "landform align runs/seed0 runs/seed1 --out aligned/seed1",
    ),
    "sharpness": (
        "How far the loss can rise near a checkpoint: boxes, balls, averages.",
        "landform sharpness runs/seed0 --task sst2 --method sam --epsilon 0.05",
        "landform sharpness 'runs/seed*' --task sst2 --also sst2_ood.yaml --method box sam "
        "--store study",
    ),
    "spectrum": (
        "Eigenvalues, trace and density of the Hessian or the Fisher matrix; also along a path.",
        "landform spectrum runs/seed0 --task sst2 --operator hessian --top 5 --rows 512",
        "landform spectrum runs/seed0 runs/seed1 --task sst2 --points 5 --figure along.png",
    ),
    "curve": (
        "Fit a curve of low loss between two checkpoints, and walk it beside the line.",
        "landform curve runs/seed0 runs/seed1 --task sst2 --bends 1 --store study",
    ),
    "mix": (
        "How much of which of two checkpoints should every layer take?",
        "landform mix runs/seed0 runs/seed1 --task sst2 --groups layer --store study",
    ),
    "average": (
        "Average checkpoints, plainly or weighted by Fisher information.",
        "landform average runs/seed0 runs/seed1 --fisher f0.safetensors f1.safetensors --task sst2 "
        "--out merged",
    ),
    "fisher": (
        "The diagonal of the Fisher matrix: how much the loss depends on every parameter.",
        "landform fisher runs/seed0 --task sst2 --rows 2000 --out fisher.safetensors",
        "landform fisher org/pre-trained --task corpus.txt --kind masked-lm --store study",
    ),
    "dropout": (
        "A dropout probability for every sub-layer, from the Fisher scores of a model.",
        "landform dropout fisher.safetensors --kind rank-linear --high 0.1 --out schedule.json",
        "landform dropout fisher.safetensors --control by-type --out by-type.json",
    ),
    "simplex": (
        "Fit a simplicial complex of low loss through checkpoints.",
        "landform simplex runs/seed0 runs/seed1 runs/seed2 --task sst2 --connectors 2",
    ),
    "dynamics": (
        "Basins of the same runs at several training steps: who changes?",
        "landform dynamics 'runs/seed*' --steps 100 200 --task sst2 --store study",
    ),
    "cartography": (
        "Read a run's data map: easy, ambiguous, hard and forgotten training rows.",
        "landform cartography runs/seed0 --task sst2 --store study",
        "landform cartography runs/seed0 --choose hard --size 1000 --out rows.txt",
    ),
    "knowledge": (
        "Which examples are forgotten and relearned on the way between two checkpoints?",
        "landform knowledge runs/seed0 runs/seed1 --task sst2 --cartography runs/seed0",
    ),
    "boundary": (
        "How far along the line between the models of two tasks does each of them work?",
        "landform boundary runs/mnli runs/sst2 --task mnli --task-b sst2 --store study",
    ),
    "grid": (
        "Write the study files of a grid of experiments; collect what came of them.",
        "landform grid --model org/pre-trained --tasks sst2 --axes seed order --out studies",
        "landform grid --collect studies/study --figure axes.png",
    ),
    "distance": (
        "Distances between two checkpoints: L2, RMS, cosine, per group of parameters.",
        "landform distance runs/seed0 runs/seed1 --by layer",
    ),
    "influence": (
        "Which training examples made the model answer that?",
        "landform influence runs/seed0 --task sst2 --rows 2000 --query-rows 200 --store study",
        "landform influence runs/seed0 --files.train train.tsv --files.validation dev.tsv "
        "--text sentence --label label --measurement margin --query 7 12",
    ),
    "examples": (
        "One table of training examples: training dynamics, self-influence, losses on the path.",
        "landform examples runs/seed0 runs/seed1 --task sst2 --store study --csv examples.csv",
    ),
    "barrier": (
        "Which training examples raise the ridge between two checkpoints?",
        "landform barrier runs/seed0 runs/seed1 --task sst2 --rows 2000 --store study",
        "landform barrier runs/seed0 runs/seed1 --task sst2 --retrain --remove 200 --pairs 4 "
        "--store study",
    ),
    "mislabel": (
        "Rank training rows by self-influence: outliers and wrong labels come first.",
        "landform mislabel runs/seed0 --task sst2 --rows 2000 --store study",
    ),
    "lds": (
        "Do influence scores predict what training on half of the rows gives?",
        "landform lds org/pre-trained --task sst2 --rows 1000 --query-rows 100 "
        "--train.max-steps 100 --store study",
    ),
    "counterfactual": (
        "Which predictions flip without the rows that are said to help them most?",
        "landform counterfactual org/pre-trained --task sst2 --rows 1000 --sizes 20 40 80 "
        "--train.max-steps 100 --store study",
    ),
    "hans": (
        "Generate HANS-like data, or score a file of HANS predictions.",
        "landform hans --out HANS",
        "landform hans --predictions predictions.txt --data HANS",
    ),
    "import": (
        "Read logs, pickles and per-sample files of the connectivity project.",
        "landform import logs mnli_logs hans_logs --store study",
        "landform import hub connectivity/feather_berts_ --match 'hans_eval*' --out hans",
    ),
    "export": (
        "Write results of a study in the formats of the connectivity project.",
        "landform export logs study --out logs",
    ),
    "convert": (
        "Convert weights of TensorFlow, Flax or a PyTorch state dict to a checkpoint.",
        "landform convert model.ckpt-34110 runs/bert --labels not_duplicate duplicate",
    ),
    "merge": (
        "Fold LoRA updates, or trained biases, into the weights: a whole model.",
        "landform merge runs/seed0 --out merged/seed0",
    ),
    "models": (
        "List the hub's models of a prefix: PREFIX and a number.",
        "landform models connectivity/bert_ft_qqp- --steps",
    ),
    "push": (
        "Push a checkpoint, a study with its atlas, logs or a file to the hub, with a card.",
        "landform push runs/seed0@300 org/model-0",
    ),
    "paws": (
        "Build PAWS-QQP from Quora's question pairs and the released index files.",
        "landform paws --quora quora_duplicate_questions.tsv --index paws_qqp --out paws_final",
    ),
    "report": ("Write the HTML atlas of a study.", "landform report study"),
    "figure": (
        "Draw any figure of any result that a study keeps.",
        "landform figure study",
        "landform figure study connect --which heatmap --style paper --out heatmap.pdf",
    ),
    "run": (
        "Run a whole study from a YAML file; resumes where it stopped.",
        "landform run study.yaml --dry-run",
    ),
    "demo": ("The embedded study: 8 seeds of a small encoder, no download.", "landform demo"),
}
for _place, (_name, (_line, *_examples)) in enumerate(_COMMANDS.items()):
    _help = "\n\n".join([_line, *(f"Example: {example}" for example in _examples)])
    _home = f"{_name}_" if keyword.iskeyword(_name) else _name  # `import` cannot be a module
    app.command(f"landform.cli.{_home}:{_home}", name=_name, help=_help, sort_key=_place)
app.register_install_completion_command()


@app.command(name="completion", sort_key=99)
def completion(shell: str = "bash") -> None:
    """Print the completion script of a shell (bash, zsh or fish)."""
    with _sources_read_once():
        print(app.generate_completion(shell=shell))  # type: ignore[arg-type]


@contextmanager
def _sources_read_once() -> Iterator[None]:
    """For `generate_completion` of cyclopts, which looks up the texts of the options in the sources
    of their classes, and finds and parses these again for every command that shares them: for ten
    seconds and more."""
    find, parse = inspect.getsource, ast.parse
    inspect.getsource = functools.cache(find)  # type: ignore[assignment]
    ast.parse = functools.cache(parse)  # type: ignore[assignment]
    try:
        yield
    finally:
        inspect.getsource, ast.parse = find, parse


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit status."""
    with _one_voice():
        return _run(arguments)


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes on one command (torchrun) the first speaks for all.

    An exception that nobody expected still shows its traceback: it leaves the block.
    """
    rank, world = (os.environ.get(name, "0").strip() for name in ("RANK", "WORLD_SIZE"))
    if rank in ("", "0") or world in ("", "0", "1"):
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _run(arguments: Sequence[str] | None) -> int:
    status = _run_command(arguments)
    common = sys.modules.get("landform.cli.common")
    if common is not None:  # a page of help needs none of it
        common.forget_studies(failed=status == 1)
    return status


def _run_command(arguments: Sequence[str] | None) -> int:
    import landform

    app.version = landform.__version__
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _say(_usage(error), 2)
    except LandformError as error:
        return _say(_spoken(error, arguments), 1)
    except KeyboardInterrupt:
        return _say(
            "interrupted; what was finished is kept, the same command goes on from there", 130
        )
    except BrokenPipeError:
        # The reader (head, less) has gone; there is nobody left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # standard output on a full disk, say
        where = error.filename or "standard output"
        return _say(f"{where}: {error.strerror}\n  what to do: check the path and the disk", 1)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning in one line, without the place in the source that raised it."""
    print(f"warning: {message}", file=sys.stderr)


def _say(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _spoken(error: LandformError, arguments: Sequence[str] | None) -> str:
    """The error with options spelled as the flags of the command that it comes from."""
    from landform.config import as_flags

    flags: dict[str, str] = {}
    with suppress(CycloptsError):
        _, apps, _ = app.parse_commands(arguments)
        for argument in apps[-1].assemble_argument_collection():
            for flag in argument.names:
                option = flag.rpartition(".")[2].removeprefix("--").replace("-", "_")
                # An option of the command itself goes before one of its trainings.
                if flag.startswith("--") and ("." not in flag or option not in flags):
                    flags[option] = flag
    return as_flags(str(error), flags)


def _usage(error: CycloptsError) -> str:
    """The error in one line, with pydantic's decorations taken off."""
    from pydantic import ValidationError

    from landform.config import describe, remedy_of

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__ or cause.__context__
    page = f"see 'landform {' '.join(error.command_chain or ())} --help'"
    if not isinstance(cause, ValidationError):
        return f"{' '.join(str(error).split())}\n  what to do: {page}"
    about = remedy_of(cause)
    return f"{describe(cause)}\n  what to do: {f'{about} ({page})' if about else page}"
