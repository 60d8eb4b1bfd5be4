"""Kernel tests: the real nf_tables and real packets, in namespaces that each test has for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lab import Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Give a fresh host and remote; the host forwards."""
    with Lab() as made:
        yield made
