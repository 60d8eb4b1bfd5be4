"""What was changed since a container was made: laid over its annotation, written down and read again."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.errors import InputError
from ctrport.model import amendment, annotations, ports
from ctrport.model.amendment import EXTENSION, LARGEST, Amendment
from ctrport.model.ports import PortMapping, Protocol
from ctrport.model.workload import Container, Endpoint, Key
from strategies import hostile_text, port_mappings

CREATED = 1000


def mappings(specs: str) -> tuple[PortMapping, ...]:
    found, errors = ports.parse_list(specs)
    assert not errors
    return found


def container(publish: str | None = None, extension: bytes = b"", **fields: object) -> Container:
    words = {} if publish is None else {annotations.PUBLISH: publish}
    extensions = {EXTENSION: extension} if extension else {}
    key = Key(str(fields.pop("namespace", "default")), "web")
    return Container(
        key=key,
        created_at=CREATED,
        annotations=words,
        extensions=extensions,
        **fields,  # type: ignore[arg-type]
    )


def asked(found: Container, **known: object) -> tuple[list[str], tuple[str, ...]]:
    """Give what a container asks for and what is wrong with its words."""
    workload = annotations.read_workload(found, None, **known)  # type: ignore[arg-type]
    assert workload is not None
    return [str(m) for m in workload.requests], workload.problems


def some() -> st.SearchStrategy[list[PortMapping]]:
    return st.lists(port_mappings(), max_size=5, unique=True)


def amendments() -> st.SearchStrategy[Amendment]:
    times = st.integers(0, amendment.LATEST - 1)
    return st.builds(
        Amendment, added=st.dictionaries(port_mappings(), times, max_size=5), removed=some().map(frozenset)
    )


@given(amendments())
def test_what_is_written_is_read_again(changes: Amendment):
    """Reading what was written gives the same changes; no change at all is written as nothing."""
    written = changes.encode()
    assert amendment.read(written) == changes
    assert (written == b"") == (changes == Amendment())


@given(amendments(), some(), some(), st.integers(0, 10**18))
def test_publish_and_unpublish(
    changes: Amendment, annotated: list[PortMapping], named: list[PortMapping], now: int
):
    """After publish all that was named is asked for and nothing less than before; after unpublish none of it is."""
    before = changes.apply(annotated)
    more = changes.publish(annotated, named, now)
    assert set(more.apply(annotated)) == {*before, *named}
    assert {m: more.added[m] for m in before if m in changes.added} == {
        m: changes.added[m] for m in before if m in changes.added
    }
    assert more.publish(annotated, named, now + 1) == more
    less = more.unpublish(annotated, named)
    assert set(less.apply(annotated)) == set(before) - set(named)
    assert less.removed <= set(annotated)


def test_withdrawn_and_published_again():
    """What was withdrawn from the annotation and is published again counts from then, not from the creation."""
    annotated = mappings("8080:80 8081:80")
    without = Amendment().unpublish(annotated, mappings("8080:80"))
    assert without == Amendment(removed=frozenset(mappings("8080:80")))
    again = without.publish(annotated, mappings("8080:80"), 2000)
    found = annotations.read_workload(container("8080:80 8081:80", again.encode()), None)
    assert found is not None
    assert [(str(m), found.rank_of(m)) for m in found.requests] == [("8081:80/tcp", 1000), ("8080:80/tcp", 2000)]


def test_everything_withdrawn_and_the_annotation_changed():
    """What the annotation no longer says is forgotten by the next change, so that the record does not grow."""
    all_gone = Amendment().unpublish(mappings("8080:80 8081:80"), mappings("8080:80 8081:80"))
    later = all_gone.unpublish(mappings("8081:80 9000:80"), mappings("9000:80"))
    assert later.removed == frozenset(mappings("8081:80 9000:80"))


def test_the_shape_on_disk():
    """The JSON is versioned and short: ranges stay ranges, one entry for each time."""
    changes = Amendment().publish((), mappings("20000-29999:20000-29999 53/udp"), 7)
    assert json.loads(changes.encode()) == {
        "version": 1,
        "added": [{"at": 7, "publish": "20000-29999:20000-29999/tcp 53/udp"}],
        "removed": "",
    }
    withdrawn = Amendment().unpublish(mappings("1-65535:1-65535"), mappings("1-65535:1-65535"))
    assert json.loads(withdrawn.encode())["removed"] == "1-65535:1-65535/tcp"


def test_what_is_too_large():
    """Changes that would make the container's record too large are refused with both sizes."""
    many = mappings(" ".join(f"127.0.0.1:{port}:{60000 - port}" for port in range(1000, 15000)))
    with pytest.raises(InputError, match=f"and {LARGEST} is the most"):
        Amendment().publish((), many, 1).encode()


@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"8080:80",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"version": 2, "added": [], "removed": ""}',
        b'{"version": 1, "added": {}, "removed": ""}',
        b'{"version": 1, "added": [], "removed": null}',
        b'{"version": 1, "added": [], "removed": "x"}',
        b'{"version": 1, "added": ["8080:80"], "removed": ""}',
        b'{"version": 1, "added": [{"publish": "8080:80"}], "removed": ""}',
        b'{"version": 1, "added": [{"at": true, "publish": "8080:80"}], "removed": ""}',
        b'{"version": 1, "added": [{"at": -1, "publish": "8080:80"}], "removed": ""}',
        b'{"version": 1, "added": [{"at": 1e3, "publish": "8080:80"}], "removed": ""}',
        b'{"version": 1, "added": [{"at": 1, "publish": "8080:80 \\u001b[2J"}], "removed": ""}',
    ],
)
def test_what_is_not_ours_does_not_count(value: bytes):
    """An extension that cannot be read is a problem in printable words, and the annotation counts as it stands."""
    requests, problems = asked(container("8080:80", value))
    assert requests == ["8080:80/tcp"]
    assert len(problems) == 1
    assert "in extension ctrport.io/publish cannot be read and do not count: " in problems[0]
    assert problems[0].isprintable()
    assert asked(container(None, value))[0] == []


@given(st.binary(max_size=60) | hostile_text().map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes(value: bytes):
    """Whatever stands in the extension, reading it gives a workload or nothing, and never fails."""
    requests, _ = asked(container("8080:80", value))
    assert "8080:80/tcp" in requests or not requests


# -------------------------------------------------------------------------------------------------- `all`


EXPOSED = ((53, Protocol.UDP), (80, Protocol.TCP), (443, Protocol.TCP))


@pytest.mark.parametrize(
    ("publish", "requests"),
    [
        ("all", ["53/udp", "80/tcp", "443/tcp"]),
        ("8080:80, all", ["8080:80/tcp", "53/udp", "443/tcp"]),
        ("all 127.0.0.1:5353:53/udp\tall,", ["127.0.0.1:5353:53/udp", "80/tcp", "443/tcp"]),
        ("target=443,published=8443 all", ["8443:443/tcp", "53/udp", "80/tcp"]),
    ],
)
def test_all(publish: str, requests: list[str]):
    """`all` among the specs is a port of the host's choice for each exposed port that no other spec names."""
    assert asked(container(publish), exposed=EXPOSED) == (requests, ())


def test_all_of_an_image_that_is_not_known():
    """Without the image's ports `all` is a problem with the image's name, and the other specs are served."""
    requests, problems = asked(container("8080:80 all", image="evil\x1b[2J"))
    assert requests == ["8080:80/tcp"]
    assert problems == ("port spec 'all': image 'evil\\x1b[2J' is not here to say what it exposes",)
    assert asked(container("ALL"), exposed=EXPOSED)[1][0].startswith("port spec 'ALL': ")


@pytest.mark.parametrize(
    ("config", "exposed"),
    [
        ({"config": {"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "80": {}}}}, ((53, "udp"), (80, "tcp"))),
        (
            {"config": {"ExposedPorts": {"80/tcp; flush ruleset": {}, "0": {}, "\x1b": {}, "99999": {}, "81": {}}}},
            ((81, "tcp"),),
        ),
        ({"config": {"ExposedPorts": ["80"]}}, ()),
        ({"config": {"ExposedPorts": None}}, ()),
        ({"config": [1]}, ()),
        ({}, ()),
    ],
)
def test_exposed_ports(config: dict[str, object], exposed: tuple[tuple[int, str], ...]):
    """An image's exposed ports are read as far as they are ports; the rest is a stranger's text."""
    assert set(annotations.exposed_ports(config)) == set(exposed)


# --------------------------------------------------------------------------------------- whose containers


def test_containers_of_others():
    """Containers of nerdctl are left alone unless our words are on them; dockerd's and those in pods even then."""
    nerdctl = {"nerdctl/networks": '["bridge"]', "nerdctl/ports": '[{"HostPort":8080,"ContainerPort":80}]'}
    assert annotations.read_workload(container(labels=nerdctl), None) is None
    assert asked(container("8080:80", labels=nerdctl)) == (["8080:80/tcp"], ())
    live = Amendment().publish((), mappings("9000:80"), 1).encode()
    assert asked(container(None, live, labels=nerdctl)) == (["9000:80/tcp"], ())
    assert annotations.read_workload(container("8080:80", live, namespace="moby"), None) is None
    part = container("8080:80", live, namespace="k8s.io", labels={annotations.CRI_KIND: "container"})
    assert annotations.read_workload(part, None) is None
    assert annotations.read_workload(container(), None) is None


def test_networks_without_published_ports():
    """On the host's network and on an internal one nothing is served, with the reason first."""
    host = asked(container("8080:80 x", host_network=True))
    assert host[0] == []
    assert host[1][0] == "the container uses the host's network: its ports are the host's already"
    internal = annotations.read_workload(container("8080:80"), Endpoint(interface="br1"), internal={"br1"})
    assert internal is not None
    assert (internal.requests, internal.problems) == (
        (),
        ("the container is on an internal network: its ports are not published",),
    )


def test_white_space_of_unicode_is_no_space():
    """A value in ASCII white space is read; one with another kind around it is refused, as it is between specs."""
    read = annotations.read_workload(container(" 8080:80\n"), None)
    assert read is not None
    assert ([str(r) for r in read.requests], read.problems) == (["8080:80/tcp"], ())
    refused = annotations.read_workload(container("8080:80\u00a0"), None)
    assert refused is not None
    assert (refused.requests, len(refused.problems)) == ((), 1)
