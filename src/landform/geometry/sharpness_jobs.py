"""The jobs behind sharpness: climbs, the points they keep, and the worker that runs both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from landform.errors import StoreError
from landform.evaluation.field import Field
from landform.evaluation.points import PointsWork, PointsWorker, data_fingerprint
from landform.geometry.ascent import climb
from landform.geometry.regions import Region, RegionSpec, open_region
from landform.store.artifacts import ArtifactStore, Contents
from landform.store.fingerprint import fingerprint
from landform.store.plan import Job
from landform.weights.checkpoint import Checkpoint
from landform.weights.points import ReadPoint, Vertex
from landform.weights.space import ParameterSpace

__all__ = ["KeptPoint", "SharpnessWork", "SharpnessWorker"]


@dataclass(frozen=True, eq=False)
class KeptPoint:
    """The point that a climb kept, read from the store when it takes part in a mix."""

    around: Checkpoint
    job: Job
    store: ArtifactStore | None

    @property
    def spec(self) -> str:
        """As people are told of it."""
        return self.job.label

    @property
    def fingerprint(self) -> str:
        """Of the climb that made it: it is known before the climb has run."""
        return fingerprint(("climbed", self.job.key))

    def flat(self, space: ParameterSpace, read: ReadPoint) -> Tensor:
        """The vector, shape (space.numel,)."""
        if self.store is None:
            raise StoreError(f"{self.spec}: no store was given to read its end from")
        values = torch.from_numpy(np.array(self.store.read(self.job.key).tensors["point"]))
        return Vertex(self.spec, space, values).flat(space, read)


@dataclass(frozen=True)
class SharpnessWork:
    """The picklable factory of workers: what is measured, and what is climbed on."""

    points: PointsWork
    climbing: PointsWork

    def __call__(self) -> SharpnessWorker:
        """Open a worker."""
        return SharpnessWorker(self)


class SharpnessWorker:
    """Runs the jobs of a `SharpnessPlan`: mixes, climbs, and the sizes of regions."""

    def __init__(self, work: SharpnessWork) -> None:
        self.memory = work.points.config.memory
        self.points: PointsWorker = work.points()
        same = data_fingerprint(work.points) == data_fingerprint(work.climbing)
        self.climbing = self.points if same else work.climbing()
        self.field: Field | None = None

    def run(self, job: Job) -> Contents:
        """Do one job."""
        if job.kind == "mix":
            return self.points.run(job)
        centre = self.climbing.point(job.spec["weights"])
        spec: RegionSpec = job.spec["region"]
        region = open_region(self.climbing.space, centre, spec, memory=self.memory)
        if job.kind == "region":
            return Contents(records={"region": _sizes(region)})
        return self._climb(job, region)

    def _climb(self, job: Job, region: Region) -> Contents:
        if self.field is None:
            # Made once: it turns gradients on in the model that mixes share.
            self.field = Field(self.climbing)
        found = climb(self.field, region, job.spec["ascent"], job.spec["restart"])
        point = torch.empty_like(region.centre)
        region.place(found.u, point)
        records = {
            **_sizes(region),
            "loss": found.loss,
            "first_order": found.first_order,
            "reach": region.reach(found.u),
            "distance": region.distance(found.u),
            "moved": bool((found.u != 0).any()),
        }
        table = pd.DataFrame({"step": range(len(found.losses)), "loss": found.losses})
        return Contents({"point": point.cpu().numpy()}, {"climb": table}, {"region": records})


def _sizes(region: Region) -> dict[str, Any]:
    return {
        "radius": region.radius,
        "spread": region.spread,
        "dimension": region.dimension,
        "length": region.length,
    }
