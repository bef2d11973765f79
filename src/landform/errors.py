"""Every error a user can meet: what is wrong, where, and what to do about it.

Each class derives from `LandformError`, so that a caller can catch the whole family and the
command line can print the message without a traceback and exit with status 1.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CurvatureError",
    "DataError",
    "EngineError",
    "HubError",
    "LabelError",
    "LandformError",
    "MissingExtraError",
    "NonFiniteError",
    "SpaceMismatchError",
    "StoreError",
]


class LandformError(Exception):
    """Base of all errors raised on purpose.

    `what` names the culprit (file, row, column, tensor, option) and what was expected;
    `remedy` says what to do. Both appear in `str(error)`.
    """

    def __init__(self, what: str, *, remedy: str | None = None) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(what if remedy is None else f"{what}\n  what to do: {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray); keyword arguments are lost without this.
        return (_rebuild, (type(self), self.what, self.remedy))


def _rebuild(kind: type[LandformError], what: str, remedy: str | None) -> LandformError:
    return kind(what, remedy=remedy)


class ConfigError(LandformError):
    """An option is unknown, out of range or contradicts another one."""


class DataError(LandformError):
    """A data file, column or row cannot be used."""


class LabelError(DataError):
    """The labels of the data and the labels of the model cannot be reconciled."""


class CheckpointError(LandformError):
    """A checkpoint is missing, unreadable, incomplete or refused."""


class SpaceMismatchError(CheckpointError):
    """Two checkpoints do not live in the same parameter space."""


class NonFiniteError(LandformError):
    """A NaN or an infinity in weights or losses."""


class CurvatureError(LandformError):
    """A model, layer or factor from which no curvature can be computed."""


class StoreError(LandformError):
    """A study directory cannot be read or written."""


class HubError(LandformError):
    """The hub cannot be reached, refuses, or does not have what is asked for."""


class EngineError(LandformError):
    """A job failed, or an engine cannot be started."""


class MissingExtraError(LandformError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """The error for `package`, which the extra `extra` installs, needed for `purpose`."""
        return cls(
            f"{purpose} needs the package {package!r}, which is not installed",
            remedy=f"pip install 'landform[{extra}]'",
        )
