"""The rules about who may import what, from the end of "Rooms" in the architecture notes.

Read from the source, so that a new module is under them from its first line; what a command imports is read
from the interpreter itself, which also sees what a library drags in.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = SOURCE / "ctrport"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "pb" not in path.relative_to(PACKAGE).parts)

# What a pure module may know: data and arithmetic of the standard library, and other pure modules of ours.
PURE = {
    "__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum",
    "fractions", "functools", "hashlib", "heapq", "ipaddress", "itertools", "json", "math",
    "operator", "re", "string", "textwrap", "types", "typing", "unicodedata",
}  # fmt: skip
PURE_OURS = (
    "ctrport.model",
    "ctrport.errors",
    "ctrport.firewall.ruleset",
    "ctrport.firewall.table",
)


def pure_modules() -> list[Path]:
    firewall = [PACKAGE / "firewall" / name for name in ("ruleset.py", "table.py")]
    return [path for path in MODULES if path.is_relative_to(PACKAGE / "model") or path in firewall]


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Give line and absolute name of everything imported anywhere in a module, also inside functions."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                # `from ctrport import errors` imports ctrport.errors.
                yield node.lineno, f"{base}.{alias.name}" if base.partition(".")[0] == "ctrport" else base


def importers(*libraries: str) -> dict[str, list[str]]:
    """Give who imports one of some libraries: {module path in the package: [what]}."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        for line, imported in imports(path):
            if any(within(imported, library) for library in libraries):
                found.setdefault(path.relative_to(PACKAGE).as_posix(), []).append(f"line {line}: {imported}")
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_source_is_found():
    """The rules below are about something."""
    assert PACKAGE / "__init__.py" in MODULES
    assert pure_modules()


@pytest.mark.parametrize("path", pure_modules(), ids=name_of)
def test_the_core_does_no_io(path: Path):
    """The model and the making of the ruleset are data in, data out: no I/O, no clock, no environment."""
    foreign = [
        f"line {line}: {name}"
        for line, name in imports(path)
        if name.partition(".")[0] not in PURE and not any(within(name, ours) for ours in PURE_OURS)
    ]
    calls = [
        f"line {node.lineno}: {node.func.id}()"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "__import__"}
    ]
    assert foreign + calls == []


def test_only_the_containerd_package_imports_grpc():
    """Everybody else speaks of workloads, not of messages."""
    found = importers("grpc", "google.protobuf", "ctrport.containerd.pb")
    assert {path: what for path, what in found.items() if not path.startswith("containerd/")} == {}


def test_only_one_module_loads_libnftables():
    """One way into the kernel's ruleset."""
    found = importers("nftables")
    assert {path: what for path, what in found.items() if path != "firewall/nft.py"} == {}


def test_only_the_command_line_imports_typer_and_prints():
    """Commands return results; one place shows them."""
    found = importers("typer", "click", "rich")
    assert {path: what for path, what in found.items() if not path.startswith("cli/")} == {}
    prints = [
        f"{path.relative_to(PACKAGE)} line {node.lineno}"
        for path in MODULES
        if not path.is_relative_to(PACKAGE / "cli")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


def test_doctor_only_looks():
    """Doctor has nothing in its hands that changes the host, but for the trace of its own connection."""
    writers = (
        "ctrport.claims",
        "ctrport.firewall.record",
        "ctrport.firewall.foreign.hook",
        "ctrport.firewall.foreign.iptables",
        "ctrport.firewall.foreign.native",
        "ctrport.flush",
        "ctrport.lifecycle",
        "ctrport.network.administer",
        "ctrport.network.attach",
        "ctrport.network.cni",
        "ctrport.network.leases",
        "ctrport.network.links",
        "ctrport.network.netns",
        "ctrport.service",
        "pyroute2",
        "subprocess",
    )
    found = importers(*writers)
    assert {path: what for path, what in found.items() if path.startswith("doctor/")} == {}
    tracers = [path for path in importers("ctrport.firewall.nftrace") if path.startswith("doctor/")]
    assert tracers == ["doctor/attempt.py"]
    pure = {"finding.py", "journey.py"}
    io = [
        f"{path.name}: {name}"
        for path in MODULES
        if path.parent == PACKAGE / "doctor" and path.name in pure
        for _, name in imports(path)
        if name.partition(".")[0] not in PURE
        and not any(within(name, o) for o in (*PURE_OURS, "ctrport.doctor.finding"))
    ]
    assert io == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short(path: Path):
    """A module is read in one sitting: under 300 lines."""
    assert len(path.read_text().splitlines()) < 300


def imported_by(directory: Path, *arguments: str) -> set[str]:
    """Run a command with a containerd that is not there and give the names of all modules it imported."""
    result = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "ctrport",
            "--address",
            str(directory / "none.sock"),
            *arguments,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "CTRPORT_CONFIG": ""},
    )
    names = set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", result.stderr, flags=re.MULTILINE))
    # Not 'No module named ctrport', and not a traceback in the middle of the imports.
    assert "ctrport.cli" in names, result.stderr[-2000:]
    assert "Traceback" not in result.stderr, result.stderr[-2000:]
    return names


@pytest.mark.parametrize(
    ("arguments", "banned"),
    [
        (
            ["--help"],
            {
                "pyroute2",
                "pydantic",
                "grpc",
                "google.protobuf",
                "nftables",
                "asyncio",
                "logging",
                "json",
                "dataclasses",
            }
            | {"ctrport.config", "ctrport.cli.run"},
        ),
        (["port", "web"], {"pyroute2", "pydantic", "ctrport.config.policy", "ctrport.model.grants"}),
        (["ps"], {"pyroute2", "pydantic", "ctrport.config.policy"}),
        (["run", "web"], {"pyroute2", "pydantic", "ctrport.config.policy", "ctrport.model.grants"}),
    ],
    ids=["help", "port", "ps", "run"],
)
def test_commands_import_little(tmp_path: Path, arguments: list[str], banned: set[str]):
    """Commands start fast: they leave alone what they do not need, most of all what costs tenths of a second."""
    state = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]
    assert imported_by(tmp_path, *state, *arguments) & banned == set()
