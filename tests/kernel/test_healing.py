"""What others do to the kernel is put right as it happens, by the real watcher and without its periodic passes."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from contract import HOST, ContractSite
from ctrport import control
from ctrport.config import Settings
from firewalls import FirewalldEnabled, Iptables, IptablesLegacy
from healing import ATTACKS, counts, delete_rule, delete_table, flush_iptables, flush_ruleset, published, talking
from lab import Answer, ask, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from healing import Attack

NEVER = "resync_seconds = 3600\n"
LONG = 20.0  # seconds; a machine under load


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContractSite]:
    """Give a host where nobody else filters, and where no periodic pass comes."""
    with ContractSite(tmp_path_factory.mktemp("site")) as made:
        made.configure(NEVER)
        made.start()
        yield made


@pytest.fixture
def site(healed: ContractSite) -> Iterator[ContractSite]:
    """Give it as it should be, and with a watcher that remembers no fight."""
    if not healed.watcher.running:
        healed.watcher.start()
    yield healed
    healed.watcher.restart()
    healed.host.nft("table inet operator { }; delete table inet operator")
    until(lambda: published(healed), within=LONG, what="the port, for the next test")


@pytest.fixture(params=[Iptables, IptablesLegacy, FirewalldEnabled], ids=["nft", "legacy", "firewalld"])
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Iptables | FirewalldEnabled]:
    """Give a host behind a firewall that drops forwarded packets."""
    with ContractSite(tmp_path_factory.mktemp("site")) as site:
        firewall = request.param(site, tmp_path_factory.mktemp("firewall"))
        site.configure(NEVER)
        site.start()
        yield firewall


def rules(site: ContractSite) -> list[str]:
    """Give all rules of ours, without what was counted."""
    text = site.host.run("nft", "--stateless", "list", "table", "inet", "ctrport", check=False).stdout
    return sorted(line.strip(" \t,") for line in text.splitlines())


def lines(site: ContractSite, since: int) -> list[str]:
    """Give the watcher's words about repairs."""
    return [line for line in site.watcher.log[since:].splitlines() if "put right in" in line]


def status(site: ContractSite) -> dict[str, Any]:
    """Ask the watcher."""
    settings = Settings(address=site.address, root=site.cli.root, state=site.cli.state)

    async def work() -> dict[str, Any]:
        async with control.connect(settings) as link:
            assert link is not None, f"no watcher: {site.watcher.log}"
            return await link.call("bindings")

    return asyncio.run(work())


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_port_answers_again(site: ContractSite, attack: Attack):
    """Whatever is done to the table, it is as before, the log names who did it, and open connections live on."""
    before = rules(site)
    mark = len(site.watcher.log)
    with talking(site):
        attack(site)
        until(lambda: lines(site, mark), within=LONG, what="a repair")
        until(lambda: published(site), within=LONG, what="the port")
    assert rules(site) == before
    said = lines(site, mark)
    assert re.search(r"nft \(pid \d+\): ", said[0]), said
    told = status(site)
    assert (told["repairs"], told["fighting"]) == (len(said), {})
    assert told["last_repair"]["process"].startswith("nft (pid ")


def test_what_is_ours_is_no_news(site: ContractSite):
    """Passes of the watcher's own, and rules of others that leave ours alone, are no repair."""
    mark = len(site.watcher.log)
    for number in range(5):
        site.create(f"more{number}", f"{9100 + number}:80")
        site.run(f"more{number}", inside="c2")
        site.host.nft(f"add table ip other{number}")
        until(lambda number=number: published(site, 9100 + number), within=LONG, what="another port")
    for number in range(5):
        site.remove(f"more{number}")
        site.host.nft(f"delete table ip other{number}")
    site.sync()
    assert lines(site, mark) == []
    assert status(site)["repairs"] == 0


def test_containerd_is_not_asked(site: ContractSite):
    """A table is put right while containerd answers nothing, and even while a pass waits for it."""
    site.containerd.delay = dict.fromkeys(("namespaces_list", "tasks_get", "containers_get"), 4.0)
    try:
        site.watcher.signal(1)
        until(lambda: site.containerd.calls["namespaces_list"] > 1, what="a pass that waits")
        delete_table(site)
        until(lambda: published(site), within=3.5, what="the port")
    finally:
        site.containerd.delay = {}


def test_counters_survive(site: ContractSite):
    """Elements go on counting: over a rebuild from where they are, after a flush from where they were seen."""
    for _ in range(7):
        assert published(site)
    before = counts(site)
    assert before["tcp 8080"] >= 7
    mark = len(site.watcher.log)
    delete_rule(site)
    until(lambda: lines(site, mark), within=LONG, what="the repair")
    after = counts(site)
    assert all(after[key] >= before[key] for key in before)
    site.sync()  # a full pass lists
    seen = counts(site)
    mark = len(site.watcher.log)
    flush_ruleset(site)
    until(lambda: lines(site, mark), within=LONG, what="the repair")
    again = counts(site)
    assert again == seen
    assert published(site)
    assert counts(site)["tcp 8080"] == seen["tcp 8080"] + 1
    site.create("more", "9100:80")
    site.run("more", inside="c2")
    until(lambda: published(site, 9100), within=LONG, what="another port")
    now = counts(site)
    assert all(now[key] >= count for key, count in again.items()), "another port resets nothing"
    site.remove("more")


def test_a_fight_does_not_spin(site: ContractSite):
    """Who undoes every repair is named once, and repairs come after growing pauses; the end state is right."""
    mark = len(site.watcher.log)
    ended = threading.Event()
    fought = 0

    def fight() -> None:
        nonlocal fought
        while not ended.wait(0.02):
            if site.host.run("nft", "delete table inet ctrport", check=False).returncode == 0:
                fought += 1

    thread = threading.Thread(target=fight)
    thread.start()
    try:
        until(lambda: "again and again" in site.watcher.log[mark:], within=LONG, what="the warning")
        time.sleep(4)
    finally:
        ended.set()
        thread.join()
    # After the sixth the pauses are 0.5, 1, 2 and 4 seconds.
    assert 6 <= fought <= 30, fought  # an unchecked fight comes to hundreds
    warnings = [line for line in site.watcher.log[mark:].splitlines() if "again and again" in line]
    assert len(warnings) == 1
    assert "nft (pid " in warnings[0]
    told = status(site)
    assert list(told["fighting"]) == ["table inet ctrport"]
    until(lambda: published(site), within=LONG, what="the port when the fight is over")


def test_settings_are_set_again(site: ContractSite):
    """Settings that somebody changes are noticed, though the kernel tells nobody."""
    mark = len(site.watcher.log)
    for name in ("net/ipv4/ip_forward", "net/ipv4/conf/ctrport0/route_localnet"):
        site.host.sysctl(name, 0)
        until(lambda name=name: site.host.sysctl(name) == "1", within=LONG, what=name)
    assert "net.ipv4.ip_forward had another value" in site.watcher.log[mark:]
    assert "set net.ipv4.ip_forward from 0 to 1: published ports are forwarded" in site.watcher.log[mark:]


def test_the_operator_s_table_comes_back(site: ContractSite):
    """The chain for the operator's rules is there again after a flush; its rules were his to keep."""
    flush_ruleset(site)
    listing = ("nft", "list", "chain", "inet", "ctrport-user", "published")
    until(lambda: site.host.run(*listing, check=False).returncode == 0, within=LONG, what="the operator's chain")


def test_the_way_through_other_firewalls(behind: Iptables | FirewalldEnabled):
    """Our jump in a chain that drops is there again after `iptables -F`, a reload and a restore by others."""
    site = behind.site
    attacks: list[Attack] = [lambda _: behind.load()]
    if isinstance(behind, Iptables):
        program = f"iptables-{behind.backend}"
        attacks.append(flush_iptables if behind.backend == "nft" else lambda s: s.host.run(program, "-F"))
    assert published(site)
    for attack in attacks:
        mark = len(site.watcher.log)
        with talking(site):
            attack(site)
            until(
                lambda mark=mark: lines(site, mark) or "firewalld has loaded" in site.watcher.log[mark:],
                within=LONG,
                what="a repair",
            )
            until(lambda: published(site), within=LONG, what="the port")
        until(
            lambda: isinstance(ask(site.c1, "192.0.2.2", 9090, timeout=0.5), Answer),
            within=LONG,
            what="the way out of a container",
        )
        assert "drops forwarded packets" not in site.watcher.log[mark:], "a passing state is no advice"


def test_a_state_directory_that_is_removed(site: ContractSite):
    """Lock and socket are there again: commands find the watcher, and a second one is refused."""
    shutil.rmtree(site.cli.state)
    until((site.cli.state / "watch.sock").is_socket, within=LONG, what="the socket")
    assert status(site)["containers"]
    refused = site.cli("watch", timeout=20)
    assert "another ctrport watches already" in refused.stderr
    flush_ruleset(site)
    until(lambda: published(site), within=LONG, what="the port")
    site.sync()
    assert (site.cli.state / "rules.json").exists()
    assert oct(site.cli.state.stat().st_mode & 0o777) == "0o700"


def test_a_full_disk(site: ContractSite):
    """Nothing can be kept in the state directory: ports are served all the same, and it is told once."""
    site.watcher.terminate()
    for name in ("rules.json", "sysctl.json"):
        (site.cli.state / name).unlink(missing_ok=True)
        (site.cli.state / f".{name}").unlink(missing_ok=True)
        (site.cli.state / f".{name}").symlink_to("/dev/full")
    try:
        site.host.sysctl("net/ipv4/ip_forward", 0)
        flush_ruleset(site)
        mark = len(site.watcher.log)
        site.watcher.start()
        assert published(site)
        site.sync()
        delete_rule(site)
        until(lambda: lines(site, mark), within=LONG, what="the repair")
        site.sync()
        said = site.watcher.log[mark:]
        assert said.count("cannot keep the record of the rules") == 1
        assert "flush cannot put net.ipv4.ip_forward back" in said
        assert "a pass failed" not in said
        assert "are not the ones to be" not in said, "known by memory"
        assert published(site)
    finally:
        for path in site.cli.state.glob(".*.json"):
            path.unlink()
    assert isinstance(ask(site.remote, HOST[4], 8080), Answer)
    assert Path("/dev/full").is_char_device()
