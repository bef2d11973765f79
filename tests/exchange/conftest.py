"""What the tests of exchange share."""

from __future__ import annotations

from typing import Any

import pytest

from known_lines import made_lines
from landform.exchange.connections import ImportConfig, connection_of
from landform.exchange.lines import Line


@pytest.fixture
def lines() -> list[Line]:
    return made_lines()


@pytest.fixture
def connection(lines: list[Line]) -> Any:
    return connection_of(lines, config=ImportConfig(replicates=20))
