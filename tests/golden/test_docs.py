"""The listings in docs/ruleset.md are those of the golden files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ctrport.firewall import ruleset
from ctrport.model.mark import DEFAULT_MARK
from golden.scenarios import DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "ruleset.md"
MARKED = re.compile(
    r"(?P<head><!-- golden: (?P<file>[a-z0-9-]+\.nft): (?P<parts>[a-z0-9_, ]+) -->\n)"
    r".*?(?P<tail><!-- end of golden -->)",
    re.DOTALL,
)


def blocks(text: str) -> dict[str, str]:
    """Give the chains, maps and sets of a golden file by name, as they stand there, less one tab."""
    found = {}
    for match in re.finditer(r"^\t(?:chain|map|set) (\w+) \{\n.*?^\t\}$", text, re.DOTALL | re.MULTILINE):
        found[match[1]] = "\n".join(line.removeprefix("\t") for line in match[0].split("\n"))
    return found


def listing(match: re.Match[str]) -> str:
    found = blocks((DIRECTORY / match["file"]).read_text("utf-8"))
    shown = "\n\n".join(found[name].expandtabs(4) for name in match["parts"].split(", "))
    return f"{match['head']}```\n{shown}\n```\n{match['tail']}"


def test_the_listings_are_the_golden_files(agreed: Callable[[Path, str], None]):
    """What the page shows is what is made; --update-golden copies it there."""
    text = PAGE.read_text("utf-8")
    agreed(PAGE, MARKED.sub(listing, text))


def test_every_part_of_the_table_is_explained():
    """No chain, map or set is missing from the page, and none is shown that is gone."""
    shown = {name for match in MARKED.finditer(PAGE.read_text("utf-8")) for name in match["parts"].split(", ")}
    assert shown == set(blocks((DIRECTORY / "wildcard.nft").read_text("utf-8")))


def test_the_names_that_others_rely_on():
    """The table's address and the mark's bit stand in the page as they are in the program."""
    text = PAGE.read_text("utf-8")
    assert f"`{ruleset.ADDRESS}`" in text
    assert f"`{DEFAULT_MARK:#x}`" in text
