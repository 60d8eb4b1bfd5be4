"""Networks and leases on disk: who has which address."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.errors import ConflictError, HostError, InputError, NotFoundError
from ctrport.model.workload import Key
from ctrport.network import leases, networks
from ctrport.network.leases import Lease
from ctrport.network.networks import CANDIDATES, Network, choose_subnet, unique_local

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Network(name="n", bridge="br0", ipv4=IPv4Network("198.51.100.0/29"), ipv6=IPv6Network("2001:db8::/64"))
LARGE = Network(name="n", bridge="br0", ipv4=IPv4Network("198.51.100.0/24"))


def key(number: int) -> Key:
    return Key("default", f"c{number}")


def take(root: Path, network: Network, number: int, wanted: str | None = None) -> IPv4Address:
    ip = IPv4Address(wanted) if wanted else None
    return leases.take(root, network, key(number), netns=f"n{number}", containerd="/c.sock", wanted=ip).ipv4


# ---------------------------------------------------------------------------------------------------- networks


def test_gateways_and_numbers():
    """The first address of each subnet is the gateway; an IPv6 address has its IPv4 one's number."""
    assert (SMALL.gateway4, SMALL.gateway6) == (IPv4Address("198.51.100.1"), IPv6Address("2001:db8::1"))
    assert SMALL.ipv6_of(IPv4Address("198.51.100.5")) == IPv6Address("2001:db8::5")
    assert (LARGE.gateway6, LARGE.ipv6_of(IPv4Address("198.51.100.5"))) == (None, None)


@pytest.mark.parametrize("network", [SMALL, LARGE])
def test_a_network_is_read_as_it_was_written(tmp_path: Path, network: Network):
    """With and without IPv6."""
    networks.save(tmp_path, network)
    assert networks.load(tmp_path, "n") == network
    assert networks.load_all(tmp_path) == [network]


def test_no_network(tmp_path: Path):
    """A root directory without networks, or none at all, has none."""
    assert networks.load_all(tmp_path / "none") == []
    with pytest.raises(NotFoundError, match="no network named 'n'"):
        networks.load(tmp_path, "n")


@pytest.mark.parametrize(
    ("taken", "chosen"),
    [
        ([], "10.208.0.0/20"),
        (["0.0.0.0/0", "::/0"], "10.208.0.0/20"),
        (["10.208.0.7/32"], "10.208.16.0/20"),
        (["10.208.0.0/20", "10.208.32.0/24"], "10.208.16.0/20"),
        (["10.208.0.0/13"], "10.216.0.0/20"),
        (["172.17.0.0/16", "fd00::/8"], "10.208.0.0/20"),
    ],
)
def test_the_choice_of_a_subnet(taken: list[str], chosen: str):
    """The first that overlaps no route; a default route takes nothing."""
    assert choose_subnet(map(ip_network, taken)) == IPv4Network(chosen)


@pytest.mark.parametrize("taken", ["10.208.0.0/12", "10.0.0.0/8"])
def test_no_subnet_is_left(taken: str):
    """Where routes cover all candidates the error says what to do."""
    with pytest.raises(HostError, match=r"overlap all of 10\.208\.0\.0/12") as caught:
        choose_subnet([IPv4Network(taken)])
    assert "network create default --subnet" in (caught.value.hint or "")


@given(taken=st.lists(st.sampled_from(CANDIDATES), max_size=len(CANDIDATES) - 1))
def test_a_chosen_subnet_overlaps_nothing(taken: list[IPv4Network]):
    """As long as one candidate is free it is found."""
    chosen = choose_subnet(taken)
    assert not any(chosen.overlaps(network) for network in taken)


def test_unique_local_addresses():
    """A /64 in fd00::/8, another one each time."""
    made = {unique_local() for _ in range(50)}
    assert len(made) == 50
    assert all(n.prefixlen == 64 and n.subnet_of(IPv6Network("fd00::/8")) for n in made)


# ------------------------------------------------------------------------------------------------------ leases


def test_addresses_are_given_in_turn(tmp_path: Path):
    """The next after the last one given, so that a freed address rests; gateway and ends are never given."""
    given_out = [str(take(tmp_path, SMALL, n)) for n in range(3)]
    assert given_out == ["198.51.100.2", "198.51.100.3", "198.51.100.4"]
    leases.drop(tmp_path, next(leases.every(tmp_path)))
    assert [str(take(tmp_path, SMALL, n)) for n in range(3, 6)] == ["198.51.100.5", "198.51.100.6", "198.51.100.2"]


def test_a_full_network(tmp_path: Path):
    """The error says how many addresses there are; any one that is freed, the last given too, is given again."""
    taken = [take(tmp_path, SMALL, n) for n in range(5)]
    with pytest.raises(ConflictError, match=r"network n: all 5 addresses of 198\.51\.100\.0/29 are leased"):
        take(tmp_path, SMALL, 9)
    for address in taken:
        leases.drop(tmp_path, next(x for x in leases.every(tmp_path) if x.ipv4 == address))
        assert take(tmp_path, SMALL, 10) == address


def test_a_wanted_address(tmp_path: Path):
    """Given if it is free and the network has it."""
    assert take(tmp_path, SMALL, 1, "198.51.100.5") == IPv4Address("198.51.100.5")
    with pytest.raises(ConflictError, match=r"address 198\.51\.100\.5 is held by default/c1"):
        take(tmp_path, SMALL, 2, "198.51.100.5")
    for unusable in ("198.51.100.0", "198.51.100.1", "198.51.100.7", "192.0.2.1"):
        with pytest.raises(InputError, match=r"is not a container address of network n \(198\.51\.100\.0/29\)"):
            take(tmp_path, SMALL, 2, unusable)


def test_a_lease_is_read_as_it_was_written(tmp_path: Path):
    """Everything that was made for a container can be found by it."""
    made = leases.take(tmp_path, SMALL, key(1), netns="ns", containerd="/c.sock")
    assert made == Lease(
        network="n", ipv4=IPv4Address("198.51.100.2"), container=key(1), netns="ns", containerd="/c.sock"
    )
    assert list(leases.every(tmp_path)) == [made]
    assert leases.of_container(tmp_path, key(1)) == made
    assert leases.of_container(tmp_path, Key("other", "c1")) is None


def test_giving_back_twice(tmp_path: Path):
    """The second time changes nothing."""
    made = leases.take(tmp_path, SMALL, key(1), netns="ns", containerd="")
    leases.drop(tmp_path, made)
    leases.drop(tmp_path, made)
    assert list(leases.every(tmp_path)) == []


def test_an_odd_note_of_the_last_address(tmp_path: Path):
    """What a crash left in the note is no reason to fail."""
    take(tmp_path, SMALL, 1)
    for text in ("", "garbage\n", "192.0.2.77\n"):
        (tmp_path / "networks/n/last").write_text(text)
        assert take(tmp_path, SMALL, 2) in SMALL.ipv4
        leases.drop(tmp_path, next(x for x in leases.every(tmp_path) if x.container == key(2)))


def test_threads_get_distinct_addresses(tmp_path: Path):
    """Many at once: no address twice, none lost."""
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda n: take(tmp_path, LARGE, n), range(100)))
    assert len(set(taken)) == 100
    assert {lease.ipv4 for lease in leases.every(tmp_path)} == set(taken)


def test_processes_get_distinct_addresses(tmp_path: Path):
    """The same between processes, which share nothing but the directory."""
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from ipaddress import IPv4Network\nfrom pathlib import Path\n"
        "from ctrport.model.workload import Key\nfrom ctrport.network import leases\n"
        "from ctrport.network.networks import Network\n"
        "network = Network(name='n', bridge='br0', ipv4=IPv4Network('198.51.100.0/24'))\n"
        "for n in range(25):\n"
        f"    print(leases.take(Path({str(tmp_path)!r}), network, Key(sys.argv[1], str(n)), netns='', "
        "containerd='').ipv4)"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    taken = [line for process in running for line in process.communicate(timeout=30)[0].split()]
    assert len(taken) == len(set(taken)) == 100
