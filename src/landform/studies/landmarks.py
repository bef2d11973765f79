"""The landmark way to connect: lines that depend on what was found before them.

First the landmarks, then a star of lines from every checkpoint to them, then, once the star has
made the basins, a line from every checkpoint to a random member of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from landform.errors import ConfigError
from landform.geometry.basins import Clustering
from landform.geometry.landmarks import (
    Landmarks,
    LandmarkWork,
    cluster_by_landmarks,
    medoid_landmarks,
    partners,
)
from landform.store.artifacts import ArtifactStore
from landform.store.plan import Job, Plan

if TYPE_CHECKING:
    from landform.studies.connect import ConnectConfig, ConnectionStudy

__all__ = [
    "chosen_landmarks",
    "divide_by_landmarks",
    "expected_plan",
    "landmark_choice",
    "named_landmarks",
    "star_study",
    "uses_landmarks",
    "verified_landmarks",
    "verifying_study",
]


def uses_landmarks(study: ConnectionStudy) -> bool:
    """Whether landmarks choose the lines."""
    return study.config.landmarks is not None or bool(study.landmarks)


def landmark_choice(study: ConnectionStudy) -> LandmarkWork:
    """The choice of landmarks, where they are not named."""
    first = study.work.data[0]
    return LandmarkWork(
        study.work.checkpoints,
        first.task.kind,
        study.config,
        study.config.landmarks or 0,
        study.config.seed,
    )


def chosen_landmarks(study: ConnectionStudy, store: ArtifactStore) -> tuple[int, ...]:
    """The landmarks: as named, or as they were chosen."""
    if study.landmarks:
        return study.landmarks
    record = store.read(landmark_choice(study).job().key).records["landmarks"]
    return tuple(int(index) for index in record["chosen"])


def star_study(study: ConnectionStudy, landmarks: tuple[int, ...]) -> ConnectionStudy:
    """The study of the lines from every checkpoint to the landmarks."""
    star = {
        (min(i, k), max(i, k)): None for i in range(len(study.names)) for k in landmarks if i != k
    }
    return replace(study, pairs=tuple(sorted(star)), landmarks=landmarks)


def verifying_study(study: ConnectionStudy, store: ArtifactStore) -> ConnectionStudy:
    """With a line from every checkpoint to a random member of its basin, once those are known
    from the star of lines that is in the store."""
    basins = divide_by_landmarks(study, study.first_pairs(store)).basins
    names = [study.names[k] for k in study.landmarks]
    further = [
        (study.names.index(a), study.names.index(b))
        for a, b in partners(basins, names, study.config.seed)
    ]
    return replace(study, pairs=(*study.pairs, *further))


def expected_plan(study: ConnectionStudy, store: ArtifactStore) -> Plan:
    """The jobs of the landmark way; stand-ins, as many as there can be, for unknown ones."""
    jobs: list[Job] = []
    known = bool(study.landmarks)
    if not known:
        jobs.append(landmark_choice(study).job())
        known = jobs[0].key in store
    star = star_study(
        study,
        chosen_landmarks(study, store) if known else tuple(range(landmark_choice(study).number)),
    )
    if known and not star.plan.missing(store):
        return Plan([*jobs, *verifying_study(star, store).plan.jobs])
    others = [i for i in range(len(study.names)) if i not in star.landmarks]
    ring = {frozenset(pair) for pair in zip(others, [*others[1:], *others[:1]], strict=True)}
    further = [sorted(pair) for pair in ring if len(pair) == 2]
    lines = [study.work.line_job(a, b, study.ts[1:-1]) for a, b in sorted(further)]
    return Plan([*jobs, *star.plan.jobs, *lines])


def divide_by_landmarks(study: ConnectionStudy, pairs: pd.DataFrame) -> Clustering:
    """Basins by the lines to the landmarks."""
    square, floors = study.squares(pairs)
    columns = [study.names[k] for k in study.landmarks]
    config = study.config
    return cluster_by_landmarks(
        square[columns],
        floors[columns],
        n_basins=config.basins,
        scale="auto" if config.affinity_scale is None else config.affinity_scale,
        seed=config.seed,
    )


def verified_landmarks(
    study: ConnectionStudy, clustering: Clustering, pairs: pd.DataFrame
) -> Landmarks | None:
    """What the lines say of the basins that the landmarks made."""
    if not study.landmarks:
        return None
    names = [study.names[k] for k in study.landmarks]
    basins = clustering.basins
    medoids = medoid_landmarks(study.squares(pairs)[0][names], basins)
    rows = []
    for row in pairs[pairs.data == study.work.data[0].name].to_dict("records"):
        a, b = row["a"], row["b"]
        if basins[a] != basins[b]:
            kind = "across"
        elif {a, b} & set(medoids):
            kind = "medoid"
        elif not {a, b} & set(names):
            kind = "member"
        else:  # to another landmark of its own basin: that made the basin
            continue
        gap, floor = float(row["convexity_gap"]), float(row["noise_floor"])
        values = {"a": a, "b": b, "kind": kind, "gap": gap, "noise_floor": floor}
        rows.append({**values, "above": gap > floor})
    n = len(study.names)
    return Landmarks(
        names=tuple(names),
        medoids=medoids,
        lines=pd.DataFrame(rows, columns=["a", "b", "kind", "gap", "noise_floor", "above"]),
        evaluations_of_all_pairs=n + n * (n - 1) // 2 * (len(study.ts) - 2),
    )


def named_landmarks(
    config: ConnectConfig, names: Sequence[str], pairs: Iterable[tuple[str, str]] | None
) -> tuple[int, ...]:
    """Indices of the landmarks that are named; raises where the options do not go together."""
    if config.landmarks is None and not config.landmark_names:
        return ()
    if pairs is not None or config.compat is not None:
        raise ConfigError(
            f"landmarks choose the lines: option {'pairs' if pairs is not None else 'compat'} "
            "does not go with them",
            remedy="leave one of the two out",
        )
    number = len(config.landmark_names) or config.landmarks or 0
    if config.landmarks is not None and config.landmarks != number:
        raise ConfigError(
            f"option landmarks is {config.landmarks}, but landmark_names has {number} names",
            remedy="leave one of the two out",
        )
    if number < max(2, config.basins or 1):
        raise ConfigError(
            f"{number} landmarks cannot show {config.basins or 2} basins",
            remedy="take two landmarks at least, and one for every basin",
        )
    if number > len(names):
        raise ConfigError(
            f"option landmarks is {number}, but there are {len(names)} checkpoints",
            remedy="leave it out to walk all pairs",
        )
    for name in config.landmark_names:
        if name not in names:
            raise ConfigError(
                f"option landmark_names: no checkpoint is called {name!r}",
                remedy=f"names: {', '.join(names)}",
            )
    return tuple(dict.fromkeys(names.index(name) for name in config.landmark_names))
