"""Kernel tests: the real nf_tables and real packets, in namespaces that each test has for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import Lab
from passes import Writer, writing
from strategies import ANY_POD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give a fresh host and remote; the host forwards."""
    with Lab() as made:
        yield made


@pytest.fixture
def writer(lab: Lab, tmp_path: Path) -> Iterator[Writer]:
    """Give a writer that has made its first pass, and two containers' namespaces that serve port 80.

    Its policy allows pods everything.
    """
    with writing(lab, tmp_path, policy=ANY_POD) as made:
        yield made
