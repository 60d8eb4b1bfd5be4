"""The golden files are what nftables takes: each loads, and lists back as the table that made it."""

from __future__ import annotations

import pytest

from ctrport.firewall.nft import LibNft
from golden.scenarios import DIRECTORY, SCENARIOS
from lab import Netns


@pytest.fixture(scope="module")
def nft() -> LibNft:
    """Give a library context in a namespace of its own."""
    with Netns("golden") as inside:
        yield inside.call(LibNft)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_golden_file_loads_and_lists_back(nft: LibNft, name: str):
    """The file as it stands, replacing whatever was there, is what the kernel then lists."""
    text = (DIRECTORY / f"{name}.nft").read_text("utf-8")
    nft.apply(f"add table inet ctrport\ndelete table inet ctrport\n{text}")
    assert nft.listing() == SCENARIOS[name].listing()
