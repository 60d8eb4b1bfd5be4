"""The line on which a key of a TOML file stands."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.config.locate import line_of

TEXT = '''\
# mark = 1
mark = 2
"quoted key" = [  # [policy]
  "a", "]", '#',
  { x = 1 },
]
text = """
[not.a.header]
key = "no" \\"""" # three, and one more
'lit' = \'\'\'
mark = 3\'\'\'
a . "b.c" . d = 1

[policy]   # a comment with ] and "
 trust_labels = true
allow = []
[[rules]]
  [rules.who]
  name = "x"
[[rules]]
host_ports = ["a = 1"]
[ "other table" . deep ]
x = { y = { z = 1 }, "q" = 2 }
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("mark",), 2),
        (("quoted key",), 3),
        (("quoted key", 2, "x"), 3),
        (("text",), 7),
        (("lit",), 10),
        (("a",), 12),
        (("a", "b.c", "d"), 12),
        (("policy",), 14),
        (("policy", "trust_labels"), 15),
        (("policy", "allow", 0), 16),
        (("rules", 0), 17),
        (("rules", 0, "who"), 18),
        (("rules", 0, "who", "name"), 19),
        (("rules", 1), 20),
        (("rules", 1, "host_ports"), 21),
        (("rules", 1, "nothing"), 20),
        (("other table", "deep", "x", "y", "z"), 23),
        (("not",), None),
        ((), None),
    ],
)
def test_lines(path: tuple[str | int, ...], line: int | None):
    """What looks like a key in a string, comment or array is none; for what is not written its table counts."""
    tomllib.loads(TEXT)
    assert line_of(TEXT, path) == line


def test_line_ends_of_other_systems():
    """A file with CR LF has the same lines."""
    assert line_of(TEXT.replace("\n", "\r\n"), ("rules", 1, "host_ports")) == 21


VALUES = st.one_of(
    st.integers().map(str),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(lambda t: json.dumps(t, ensure_ascii=False)),
    st.text('ab[]{}#="\n').map(lambda t: f"'''{t}'''"),
    st.lists(st.integers(), max_size=3).map(lambda n: "[ # [x]\n" + "".join(f"{i},\n" for i in n) + "]"),
)
KEYS = st.text("ab-_ .[]#='", min_size=1, max_size=4).map(json.dumps)
TABLES = st.lists(st.tuples(st.booleans(), KEYS, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4)


@given(tables=TABLES, noise=st.sampled_from(["", "\n", "# [a] = 1\n", "  \t\n\n"]))
def test_every_key_of_any_file_is_found(tables: list[tuple[bool, str, dict[str, str]]], noise: str):
    """Whatever the values hold, each key is found on the line on which it was written."""
    text, expected, numbers, kinds = "", {}, {}, {}
    for many, name, content in tables:
        if kinds.setdefault(name, many) != many or (not many and name in numbers):
            continue  # one name cannot be a table and several, nor a table twice
        numbers[name] = numbers.get(name, -1) + 1
        where: tuple[Any, ...] = (json.loads(name), *([numbers[name]] if many else []))
        text += noise
        expected[where] = text.count("\n") + 1
        text += f"[[{name}]]\n" if many else f" [ {name} ] # =\n"
        for key, value in content.items():
            text += noise
            expected[(*where, json.loads(key))] = text.count("\n") + 1
            text += f"{key} = {value} # ''' \"\n"
    tomllib.loads(text)
    assert {path: line_of(text, path) for path in expected} == expected
