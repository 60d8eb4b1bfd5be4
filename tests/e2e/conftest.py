"""End-to-end tests: a real containerd and runc on a lab's host, and the program as a user runs it.

One lab and one containerd serve the whole session. After each test the host is as it was: containers and
tasks that a test leaves are removed and fail it; rules, links and settings are put back.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from containerd_instance import LabContainerd
from lab import DIRECTORY, Lab, until
from program import Cli, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terminal import Terminal


FETCH = Path(__file__).parents[2] / "scripts" / "fetch-debian"


@pytest.fixture(scope="session")
def containerd_path(request: pytest.FixtureRequest) -> str | None:
    """Give the folder of the containerd to test against, None for the installed one."""
    suite = request.config.getoption("--containerd")
    if suite is None:
        return None
    command = [FETCH, suite, "containerd"]
    fetched = subprocess.run(command, check=True, timeout=300, stdout=subprocess.PIPE, text=True)
    return f"{fetched.stdout.strip()}/usr/bin"


@pytest.fixture(scope="session")
def containerd(containerd_path: str | None) -> Iterator[LabContainerd]:
    """Give a containerd on a lab's host, which does not forward until somebody sees to it."""
    with Lab(forwarding=False) as lab, LabContainerd(lab, path=containerd_path) as instance:
        yield instance


@pytest.fixture
def lab(containerd: LabContainerd) -> Lab:
    """Give the host that containerd is on, and the machines around it."""
    return containerd.lab


@pytest.fixture(autouse=True)
def nothing_left(containerd: LabContainerd) -> Iterator[None]:
    """Fail a test that leaves containers, tasks or namespaces behind, and clean up after it."""
    yield
    if containerd._process is None or containerd._process.poll() is not None:
        containerd.start()
    # A program that is ending may still be removing what it made.
    with contextlib.suppress(AssertionError):
        until(lambda: not _left(containerd), within=2)
    left = _left(containerd)
    if left:
        containerd.remove_all()
        for path in _namespaces(containerd):
            subprocess.run(["ip", "netns", "delete", path.name], check=False, timeout=10)
    containerd.lab.reset_host()
    if left:
        pytest.fail("left behind:\n" + "\n".join(left))


def _namespaces(containerd: LabContainerd) -> list[Path]:
    return [path for path in DIRECTORY.glob("*") if containerd.token in path.name]


def _left(containerd: LabContainerd) -> list[str]:
    return containerd.leftovers() + [f"namespace {path.name}" for path in _namespaces(containerd)]


@pytest.fixture
def ctrport(containerd: LabContainerd) -> Iterator[Cli]:
    """Give the program with directories of its own."""
    # Not pytest's: a unix socket's path has at most 107 characters.
    cli = Cli(containerd, Path(tempfile.mkdtemp(prefix="ctrport-")))
    try:
        yield cli
    finally:
        cli.close()


@pytest.fixture
def watcher(ctrport: Cli) -> Iterator[Watcher]:
    """Give a running watcher that shares its directories with the `ctrport` fixture."""
    watcher = Watcher(ctrport)
    try:
        watcher.start()
        yield watcher
    finally:
        if watcher.running:
            try:
                watcher.terminate()
            except subprocess.TimeoutExpired:
                watcher.kill()
                pytest.fail(f"ctrport watch did not end on SIGTERM:\n{watcher.log}")


@pytest.fixture(params=["watched", "alone"])
def program(request: pytest.FixtureRequest, ctrport: Cli) -> Cli:
    """Give the program once beside a running watcher and once without one."""
    if request.param == "watched":
        request.getfixturevalue("watcher")
    return ctrport


@pytest.fixture
def watched(ctrport: Cli, watcher: Watcher) -> Cli:
    """Give the program beside a running watcher."""
    assert watcher.running
    return ctrport


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    """Give a list for terminals that are to be closed at the end."""
    opened: list[Terminal] = []
    yield opened
    for each in opened:
        each.close()
