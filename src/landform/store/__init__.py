"""The store: fingerprints, atomic writes, study directories, plans of jobs and engines."""

from __future__ import annotations

from landform.store.artifacts import ArtifactStore, Contents, MemoryStore, Store
from landform.store.engines import Executed, Worker, run_plan
from landform.store.fingerprint import (
    fingerprint,
    fingerprint_array,
    fingerprint_file,
    fingerprint_files,
    to_plain,
)
from landform.store.plan import Forecast, Job, Plan
from landform.store.progress import track

__all__ = [
    "ArtifactStore",
    "Contents",
    "Executed",
    "Forecast",
    "Job",
    "MemoryStore",
    "Plan",
    "Store",
    "Worker",
    "fingerprint",
    "fingerprint_array",
    "fingerprint_file",
    "fingerprint_files",
    "run_plan",
    "to_plain",
    "track",
]
