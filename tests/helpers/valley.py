"""A curved valley given by a formula, and a fit in it."""

from __future__ import annotations

import numpy as np
import torch

from landform.geometry.descent import Descent
from landform.geometry.fitting import CurveShape


class Valley:
    """5 (y - (1 - x^2))^2. Its floor joins (-1, 0) and (1, 0), and is the Bezier curve with the
    control point (0, 2); the line between the two rises to 5."""

    size = 10

    def __init__(self):
        self.flat = torch.zeros(2, dtype=torch.float64)

    def batches(self, rows):
        return rows

    def gradient(self, batches):
        x, y = self.flat.tolist()
        off = y - (1 - x * x)
        return 5 * off**2, 10 * off * torch.tensor([2 * x, 1.0], dtype=torch.float64)


ENDS = [torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()]


def shape_of(config):
    return CurveShape(config.kind, config.bends, config.start)


def fitted(config, landscape=None):
    descent = Descent(landscape or Valley(), ENDS, shape_of(config), config)
    while descent.step < descent.total:
        descent.advance()
    return descent


def losses_along(descent, kind):
    valley, shape = Valley(), descent.shape
    found = []
    for weights in shape.weights(np.linspace(0, 1, 21)):
        valley.flat.copy_(torch.from_numpy(weights @ np.stack([*ENDS, *descent.free])))
        found.append(valley.gradient(None)[0])
    return found
