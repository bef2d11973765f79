"""Break formulas on purpose, one at a time, and see that a test notices.

    python scripts/mutations.py             every mutation (some minutes)
    python scripts/mutations.py barrier     those whose name holds the word
    python scripts/mutations.py --write     and put the table into docs/testing.md

Each entry of MUTATIONS replaces one piece of source text in a copy of the package and runs the
named tests against it, which must fail. `tests/test_mutations.py` checks on every run that each
piece of text is still there, once, so that the list cannot rot.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "testing.md"


@dataclass(frozen=True)
class Mutation:
    """A wrong formula, and where it should be noticed."""

    name: str
    file: str
    """below src/landform"""
    old: str
    new: str
    tests: str
    """files of tests, below tests, that must notice"""
    only: str = ""
    """of these the tests whose names fit (pytest -k)"""

    @property
    def source(self) -> Path:
        """The file in this checkout."""
        return ROOT / "src" / "landform" / self.file


MUTATIONS = (
    Mutation(
        "barrier: the chord's other end is left out",
        "geometry/curves.py",
        "            rise -= part\n",
        "",
        "geometry/test_curves.py",
    ),
    Mutation(
        "convexity gap: only the whole chord",
        "geometry/curves.py",
        "        hull = _convex_minorant(block, t)\n",
        "        hull = np.array(np.linspace(block[0], block[-1], len(t)))\n",
        "geometry/test_curves.py",
    ),
    Mutation(
        "noise floor: replicates are not centred",
        "geometry/curves.py",
        "    drawn -= loss[:, :, None]\n",
        "",
        "geometry/test_noise.py geometry/test_curves.py",
    ),
    Mutation(
        "interval of the barrier: not corrected for its bias",
        "geometry/curves.py",
        "np.maximum(0.0, 2.0 * value - high)",
        "np.maximum(0.0, low)",
        "geometry/test_noise.py geometry/test_curves.py",
    ),
    Mutation(
        "bootstrap: every replicate has one example less",
        "evaluation/intervals.py",
        "random.integers(0, n, size=n)",
        "random.integers(0, n, size=n - 1)",
        "evaluation/test_intervals.py",
    ),
    Mutation(
        "moving a model: the ends are swapped",
        "weights/space.py",
        "torch.lerp(a, b, t, out=self.flat)",
        "torch.lerp(b, a, t, out=self.flat)",
        "weights/test_space.py",
    ),
    Mutation(
        "Bezier curve: binomials left out",
        "geometry/paths.py",
        "binomials * (1.0 - x)",
        "np.ones_like(binomials) * (1.0 - x)",
        "geometry/test_paths.py",
    ),
    Mutation(
        "random direction: one norm for a whole tensor",
        "weights/points.py",
        'rows = drawn.shape[0] if normalise == "filter" and drawn.dim() > 1 else 1',
        "rows = 1",
        "weights/test_points.py geometry/test_surface.py",
    ),
    Mutation(
        "sharpness: the box measured with the ball's norm",
        "geometry/regions.py",
        'order = 1 if self.norm == "linf" else 2',
        "order = 2",
        "geometry/test_sharpness.py",
    ),
    Mutation(
        "permutation test: one-sided",
        "geometry/statistics.py",
        "np.mean(np.abs(sums - expected) >= observed - tolerance)",
        "np.mean(sums - expected >= observed - tolerance)",
        "geometry/test_statistics.py",
    ),
    Mutation(
        "loss gradient: masked positions count",
        "tasks/objective.py",
        "scale = valid.to(logits.dtype)",
        "scale = torch.ones_like(valid, dtype=logits.dtype)",
        "tasks/test_objective.py",
    ),
    Mutation(
        "regression: gradient without its 2",
        "tasks/objective.py",
        "gradient = 2 * (logits - targets.to(logits.dtype))",
        "gradient = logits - targets.to(logits.dtype)",
        "tasks/test_objective.py",
    ),
    Mutation(
        "calibration error: divided by the bins",
        "tasks/class_metrics.py",
        "np.abs(hits - confidence).sum(axis=-1) / count.sum(axis=-1)",
        "np.abs(hits - confidence).mean(axis=-1) / count.sum(axis=-1)",
        "tasks/test_metrics.py",
    ),
    Mutation(
        "cosine distance: norms of one end only",
        "weights/distance.py",
        "dot / math.sqrt(aa * bb)",
        "dot / aa",
        "weights/test_distance.py",
    ),
    Mutation(
        "consolidation: the pull is not scaled by Fisher",
        "training/consolidation.py",
        "pull = away * term.importance",
        "pull = away",
        "training/test_consolidation.py",
    ),
    Mutation(
        "paired seeds: normal in place of Student's t",
        "studies/paired.py",
        "half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) *",
        "half = float(stats.norm.ppf((1 + level) / 2) *",
        "studies/test_paired.py",
    ),
    Mutation(
        "covariances: a token too many in every batch",
        "curvature/fitting.py",
        "        self.examples += size\n        for number, layer_uses",
        "        self.examples += size\n        self.tokens += 1\n        for number, layer_uses",
        "curvature/test_factors.py",
        "covariances_are or test_curvatures",
    ),
    Mutation(
        "damping added after the inversion",
        "attribution/scoring.py",
        "weight = 1 / (wide + damping)",
        "weight = 1 / wide + damping",
        "attribution/test_influence.py",
        "damping_changes",
    ),
    Mutation(
        "EK-FAC: the correction of the eigenvalues dropped",
        "curvature/factors.py",
        'if self.config.strategy == "kfac":\n            return torch.outer',
        'if self.config.strategy in ("kfac", "ekfac"):\n            return torch.outer',
        "curvature/test_factors.py",
        "test_curvatures",
    ),
    Mutation(
        "EK-FAC: eigenvalues of the inputs in the wrong order",
        "curvature/factors.py",
        'return torch.outer(self.values[f"S/{layer}"], self.values[f"A/{layer}"])',
        'return torch.outer(self.values[f"S/{layer}"], self.values[f"A/{layer}"].flip(0))',
        "curvature/test_factors.py",
        "test_curvatures",
    ),
    Mutation(
        "diagonal and Lambda: the square missing",
        "curvature/gradients.py",
        "target[start:stop] += wide.square_().sum(0)",
        "target[start:stop] += wide.abs_().sum(0)",
        "curvature/test_factors.py",
        "test_curvatures",
    ),
    Mutation(
        "regression's own labels: variance 1 for 2",
        "curvature/labels.py",
        "[torch.full_like(z, math.sqrt(2))]",
        "[torch.full_like(z, 1.0)]",
        "curvature/test_factors.py curvature/test_fisher_fit.py",
        "regression",
    ),
    Mutation(
        "exact labels: remainders summed from the front",
        "curvature/labels.py",
        "tails = p.flip(-1).cumsum(-1).flip(-1)",
        "tails = p.cumsum(-1)",
        "curvature/test_labels.py",
        "root",
    ),
    Mutation(
        "sampled labels where none is scored",
        "curvature/labels.py",
        "return torch.where(targets == IGNORED, targets, drawn",
        "return torch.where(targets != targets, targets, drawn",
        "curvature/test_invariances.py",
        "sampled",
    ),
    Mutation(
        "influence: sign of the query's gradient",
        "attribution/measurement.py",
        "return values.detach(), -self.better * gradient",
        "return values.detach(), self.better * gradient",
        "attribution/test_influence.py",
        "positive_is or margin",
    ),
    Mutation(
        "Fisher of a mean loss: padding in the mean",
        "curvature/fisher_pass.py",
        "scale = 1 / valid.sum(-1).clamp(min=1)",
        "scale = 1 / torch.full_like(valid.sum(-1), valid.shape[-1]).clamp(min=1)",
        "curvature/test_invariances.py",
        "Fisher and mean",
    ),
    Mutation(
        "squared gradients: pairs of tokens counted once",
        "curvature/squares.py",
        "weights = torch.where(a == b, 1.0, 2.0)",
        "weights = torch.where(a == b, 1.0, 1.0)",
        "curvature/test_fisher_fit.py",
        "all_ways",
    ),
    Mutation(
        "tied embeddings: the cross term halved",
        "curvature/squares.py",
        "extra += 2 * values * _rows_of",
        "extra += values * _rows_of",
        "curvature/test_fisher_fit.py",
        "one_example_loop and gpt2",
    ),
    Mutation(
        "Gauss-Newton product: p p' dropped",
        "curvature/operators.py",
        "bent = p * (along - (p * along).sum(-1, keepdim=True))",
        "bent = p * along",
        "curvature/test_operators.py",
        "products_are and ggn",
    ),
    Mutation(
        "interval of a trace: normal in place of Student's t",
        "curvature/spectrum.py",
        "reach = float(t.ppf(0.5 + level / 2, count - 1))",
        "reach = 1.959964",
        "curvature/test_spectrum.py",
        "interval_of_a_trace",
    ),
    Mutation(
        "density: alpha for beta in the recurrence",
        "curvature/lanczos.py",
        "new.sub_(self.before[k], alpha=self.betas[k][-1])",
        "new.sub_(self.before[k], alpha=self.alphas[k][-1])",
        "curvature/test_spectrum.py",
        "quadrature",
    ),
    Mutation(
        "covariance of per-example sums: N in place of N - 1",
        "curvature/moments.py",
        "(self.count / (self.count - 1) / terms**2)",
        "(1 / terms**2)",
        "curvature/test_fisher_fit.py",
        "one_example_loop and distilbert",
    ),
    Mutation(
        "token scores: the first use of a shared layer alone",
        "attribution/scoring.py",
        "folded = part.view(-1, count, uses, width // uses).sum(2)",
        "folded = part.view(-1, count, uses, width // uses)[:, :, 0]",
        "attribution/test_influence.py",
        "used_twice",
    ),
    Mutation(
        "index: no root of the weights",
        "attribution/index.py",
        "signs * lowest.sqrt()",
        "signs * lowest",
        "attribution/test_index.py",
        "share_of_the_directions and diagonal",
    ),
    Mutation(
        "LDS differences: replicates not paired",
        "attribution/lds.py",
        "_interval(means[one] - means[other], level)",
        "_interval(means[one] - np.roll(means[other], 1), level)",
        "attribution/test_lds.py",
        "paired",
    ),
    Mutation(
        "ceiling of the LDS: Spearman-Brown without its 2",
        "attribution/lds.py",
        "return math.sqrt(2 * r / (1 + r))",
        "return math.sqrt(r / (1 + r))",
        "attribution/test_lds.py",
        "ceiling",
    ),
    Mutation(
        "wrong labels: ties count whole in the area",
        "attribution/mislabel.py",
        "area = 0.5 * np.diff(others) @ (found[1:] + found[:-1])",
        "area = np.diff(others) @ found[1:]",
        "attribution/test_mislabel.py",
    ),
    Mutation(
        "scores for directions: a basis not transposed",
        "attribution/directions.py",
        "matrices = basis.gradients.t() @ matrices",
        "matrices = basis.gradients @ matrices",
        "studies/test_barrier_influence.py",
    ),
)


def noticed_by(mutation: Mutation, folder: Path) -> str:
    """The test that noticed, or nothing; `folder` holds a copy of the package."""
    target = folder / "landform" / mutation.file
    text = target.read_text(encoding="utf-8")
    target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    tests = [str(ROOT / "tests" / name) for name in mutation.tests.split()]
    tests += ["-k", mutation.only] if mutation.only else []
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        target.write_text(text, encoding="utf-8")
    # 1: a test failed. Anything else (nothing collected, a crash) noticed nothing.
    found = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.M)
    return found[1] if done.returncode == 1 and found else ""


def table(rows: list[tuple[Mutation, str]]) -> str:
    """The mutations as a table in Markdown."""
    lines = ["| broken | where | the test that failed |", "|---|---|---|"]
    for mutation, noticed in rows:
        test = noticed.split("[")[0].replace("::", ": ")
        lines.append(f"| {mutation.name} | `{mutation.file}` | `{test}` |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the table between its marks in docs/testing.md."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split("<!-- mutations -->\n", 1)
    tail = rest.split("<!-- /mutations -->", 1)[1]
    PAGE.write_text(
        f"{head}<!-- mutations -->\n{text}\n<!-- /mutations -->{tail}", encoding="utf-8"
    )


def main() -> int:
    """Run the mutations; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutations whose name holds one of these")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not arguments.words or any(word in mutation.name for word in arguments.words)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(ROOT / "src" / "landform", Path(scratch) / "landform")
        for mutation in chosen:
            noticed = noticed_by(mutation, Path(scratch))
            verdict = "noticed " if noticed else "SURVIVED"
            print(f"{verdict}  {mutation.name}: {noticed}", flush=True)
            rows.append((mutation, noticed))
    if arguments.write and not arguments.words:
        write(table(rows))
    return int(not all(noticed for _, noticed in rows))


if __name__ == "__main__":
    sys.exit(main())
