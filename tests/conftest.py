"""What holds for every test: a missing tool or right is a failure, never a skip."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Tool, and the Debian package that brings it.
KERNEL_TOOLS = {
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ufw": "ufw",
    "firewalld": "firewalld",
    "dbus-daemon": "dbus",
    "sysctl": "procps",
    "tcpdump": "tcpdump",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "dockerd": "docker.io",
    "/usr/lib/podman/netavark": "netavark",
}
E2E_TOOLS = {
    **KERNEL_TOOLS,
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "busybox": "busybox-static",
    "redis-check-rdb": "redis-tools",
    "redis-cli": "redis-tools",
    "mmdebstrap": "mmdebstrap",
}
NEEDS = {"kernel": KERNEL_TOOLS, "e2e": E2E_TOOLS}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--containerd",
        metavar="SUITE",
        help="run the end-to-end tests against the containerd of another Debian suite (trixie, forky)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel: needs root; real nf_tables in network namespaces")
    config.addinivalue_line("markers", "e2e: needs root, containerd and runc")
    # A suite that a script has put into the background is born with SIGINT ignored, and so would be the shells in
    # our containers, which then cannot trap it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their directory, and stop before the first one when the machine cannot run them."""
    wanted = set()
    for item in items:
        for name in NEEDS:
            if item.path.is_relative_to(TESTS / name):
                item.add_marker(name)
                wanted.add(name)
    tools = {tool: package for name in wanted for tool, package in NEEDS[name].items()}
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool)})
    if missing:
        raise pytest.UsageError(f"these tests need: apt-get install {' '.join(missing)} (or scripts/setup-dev)")
    if wanted and os.geteuid() != 0:
        raise pytest.UsageError("these tests need root: they make network namespaces (tests/unit does not)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    """Turn a skip into a failure: a suite that can be green without having run proves nothing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: skipped, and no test may be: {report.longrepr}"
    return report
