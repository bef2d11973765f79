"""Lines of a few models whose numbers are known."""

from __future__ import annotations

import numpy as np

from landform.exchange.lines import Line


def made_lines(
    names: tuple[str, ...] = ("0", "1", "2", "10"),
    *,
    points: int = 10,
    data: str = "mnli",
    seed: int = 0,
    metrics: tuple[str, ...] = ("accuracy",),
) -> list[Line]:
    """A line for each pair: the ends are the models' own values; 10 lies behind a ridge."""
    generator = np.random.default_rng(seed)
    ends = {name: generator.uniform(0.3, 0.6, 1 + len(metrics)) for name in names}
    t = np.linspace(0, 1, points)
    lines = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            values = (1 - t)[:, None] * ends[a] + t[:, None] * ends[b]
            values += (t * (1 - t))[:, None] * generator.uniform(-0.2, 0.0, values.shape[1])
            if b == names[-1]:
                values[:, 0] += 0.4 * np.exp(-((t - 0.5) ** 2) / 0.02) * np.sin(np.pi * t)
            distance = 10 + float(generator.uniform())
            lines.append(Line(a, b, data, distance, metrics, t, values, f"made:{a}-{b}"))
    return lines
