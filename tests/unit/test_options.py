"""The words of `ctrport run`, each read or refused."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport.errors import InputError
from ctrport.model import ports
from ctrport.run import options
from ctrport.run.options import Options
from strategies import hostile_text

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLISH = ports.parse("8080:80")
HERE = Path.cwd()


@pytest.mark.parametrize(
    ("spec", "mount"),
    [
        ("/srv:/data", "type=bind,src=/srv,dst=/data,options=rbind:rw"),
        ("/srv:/data:ro", "type=bind,src=/srv,dst=/data,options=rbind:ro"),
        ("/srv:/data:rw", "type=bind,src=/srv,dst=/data,options=rbind:rw"),
        ("/srv:/data:z", "type=bind,src=/srv,dst=/data,options=rbind:rw"),
        ("./x:/data", f"type=bind,src={HERE}/x,dst=/data,options=rbind:rw"),
    ],
)
def test_volumes(spec: str, mount: str):
    """Docker's -v as ctr's mount, with an absolute source."""
    assert options.volume(spec) == mount


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("data:/data", "named volumes are not supported"),
        ("/srv", "is not SOURCE:TARGET"),
        ("/srv:", "is not SOURCE:TARGET"),
        (":/data", "is not SOURCE:TARGET"),
        ("/a:/b:ro:x", "is not SOURCE:TARGET"),
        ("/a:data", "the target 'data' is not an absolute path"),
        ("/a:/b:exec", "unknown option 'exec'"),
        ("/a,type=tmpfs:/b", "is not SOURCE:TARGET"),
        ("/a:/b,options=x", "is not SOURCE:TARGET"),
    ],
)
def test_bad_volumes(spec: str, message: str):
    """The spec is quoted; a comma, which would be syntax for ctr, is refused."""
    with pytest.raises(InputError, match=message):
        options.volume(spec)


@pytest.mark.parametrize(
    ("spec", "mount"),
    [
        ("type=bind,source=/srv,target=/data", "type=bind,src=/srv,dst=/data,options=rbind"),
        ("source=/srv,destination=/data,readonly", "type=bind,src=/srv,dst=/data,options=rbind:ro"),
        ("src=/srv,dst=/data,readonly=false", "type=bind,src=/srv,dst=/data,options=rbind"),
        ("type=bind,src=/srv,dst=/data,options=bind:ro", "type=bind,src=/srv,dst=/data,options=bind:ro"),
        ("type=tmpfs,dst=/tmp", "type=tmpfs,src=tmpfs,dst=/tmp"),
        ("type=tmpfs,dst=/tmp,options=size=64m", "type=tmpfs,src=tmpfs,dst=/tmp,options=size=64m"),
    ],
)
def test_mounts(spec: str, mount: str):
    """Docker's --mount and ctr's own form."""
    assert options.mount(spec) == mount


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "cannot read ''"),
        ("type=bind,source=/srv", "needs source and target"),
        ("target=/data", "needs source and target"),
        ("type=volume,source=v,target=/data", "type 'volume' is not bind or tmpfs"),
        ("source=/srv,target=/data,size=3", "cannot read 'size=3'"),
        ("source=,target=/data", "cannot read 'source='"),
    ],
)
def test_bad_mounts(spec: str, message: str):
    """What is missing or unknown is named."""
    with pytest.raises(InputError, match=message):
        options.mount(spec)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Files first, then -e, the last word counts; a bare name takes this process's value or is left out."""
    monkeypatch.setenv("FROM_HERE", "here = 1")
    monkeypatch.delenv("NOT_HERE", raising=False)
    path = tmp_path / "env"
    path.write_text("# comment\n\nA=1\n  B=two words  \nC=\nFROM_HERE\n#D=4\n")
    assert options.environment(["A=x", "E=a=b", "NOT_HERE"], [path]) == (
        "A=x",
        "B=two words",
        "C=",
        "FROM_HERE=here = 1",
        "E=a=b",
    )


@pytest.mark.parametrize("entry", ["", "=x", "A B=1", "A\n=1"])
def test_bad_environment(entry: str):
    """A name is not empty and has no blanks."""
    with pytest.raises(InputError, match="is not an environment entry"):
        options.environment([entry], [])


def test_bad_environment_files(tmp_path: Path):
    """A file that is not there or not text is named."""
    (tmp_path / "binary").write_bytes(b"A=\xff")
    for name in ("binary", "none"):
        with pytest.raises(InputError, match=f"--env-file {tmp_path / name}: "):
            options.environment([], [tmp_path / name])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("4096b", 4096),
        ("1k", 1024),
        ("512m", 512 << 20),
        ("2G", 2 << 30),
        ("2gb", 2 << 30),
        ("1t", 1 << 40),
    ],
)
def test_memory(text: str, size: int):
    """Docker's binary units, in any case, with or without b."""
    assert options.memory(text) == size


@pytest.mark.parametrize("text", ["", "m", "0", "0m", "-1", "1.5g", "1x", "1 g", "1gg", "\u0663m", "1e9"])
def test_bad_memory(text: str):
    """No size, no unit of ours, or nothing at all."""
    with pytest.raises(InputError, match="is not a size"):
        options.memory(text)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("db:192.0.2.7", ("db", "192.0.2.7")),
        ("db:2001:db8::7", ("db", "2001:db8::7")),
        ("db:[2001:db8::7]", ("db", "2001:db8::7")),
    ],
)
def test_host_entries(text: str, entry: tuple[str, str]):
    """A name and an address of either family."""
    assert options.host_entry(text) == entry


@pytest.mark.parametrize("text", ["db", "db:", "db:name", "192.0.2.7"])
def test_bad_host_entries(text: str):
    """No name, or no address."""
    with pytest.raises(InputError, match="is not NAME:ADDRESS"):
        options.host_entry(text)


def test_labels_and_servers():
    """KEY=VALUE with an empty value too; servers by address only."""
    assert options.key_value("--label", "a=") == "a="
    for text in ("a", "=b", " =b", ""):
        with pytest.raises(InputError, match=r"--label '.*' is not KEY=VALUE"):
            options.key_value("--label", text)
    assert options.server_address("2001:DB8::1") == "2001:db8::1"
    with pytest.raises(InputError, match="--dns 'ns1' is not an IP address"):
        options.server_address("ns1")


@given(
    text=hostile_text().filter(lambda text: len(text) < 1000),
    read=st.sampled_from([options.volume, options.mount, options.memory, options.host_entry]),
)
def test_errors_are_printable(text: str, read: Callable[[str], object]):
    """Whatever was written, it is read or refused, and the refusal quotes it in printable ASCII."""
    refusal = ""
    try:
        read(text)
    except InputError as error:
        refusal = error.message
    assert refusal.isascii()
    assert refusal.isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"publish": PUBLISH},
        {"network": "none"},
        {"network": "host", "publish": PUBLISH},
        {"network": "cni"},
        {"network": "cni:web", "publish": PUBLISH},
        {"network": "back"},
        {"network": "container:web"},
        {"restart": "always", "detach": True},
        {"restart": "on-failure:3", "detach": True},
        {"user": "0:0", "cpus": 0.5, "pull": "never"},
        {"ip": IPv4Address("198.51.100.2")},
    ],
)
def test_what_goes_together(changes: dict[str, Any]):
    """These are no contradictions."""
    Options(image="redis")._replace(**changes).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "none", "publish": PUBLISH}, "-p needs a network of the container's own, not --network none"),
        ({"network": "container:web", "publish_all": True}, "-p needs a network of the container's own"),
        ({"network": "cni:"}, "--network 'cni:' is not cni or cni:NAME"),
        ({"network": "cni:a b"}, "--network 'cni:a b' is not cni or cni:NAME"),
        ({"network": "cni", "ip": IPv4Address("198.51.100.2")}, "a CNI plugin chooses the address itself"),
        ({"network": "../default"}, "--network '../default' is not a name"),
        ({"network": ""}, "--network '' is not a name"),
        ({"network": "container:-x"}, "is not a name that containerd takes"),
        ({"network": "container:"}, "is not a name that containerd takes"),
        ({"name": "a b"}, "is not a name that containerd takes"),
        ({"ip": IPv4Address("198.51.100.2"), "network": "host"}, "--ip goes with a bridge network"),
        ({"remove": True, "restart": "always", "detach": True}, "--rm and --restart always contradict each other"),
        ({"restart": "always"}, "--restart always goes with -d"),
        ({"restart": "always", "detach": True, "tty": True}, "--restart always and -t contradict each other"),
        ({"restart": "often", "detach": True}, "--restart 'often' is not a policy"),
        ({"restart": "on-failure:x", "detach": True}, "is not a policy"),
        ({"pull": "sometimes"}, "--pull 'sometimes' is not one of missing, always, never"),
        ({"user": "a b"}, "--user 'a b' is not USER"),
        ({"user": "a:b:c"}, "is not USER"),
        ({"cpus": 0.0}, "is not a positive number"),
    ],
)
def test_what_does_not(changes: dict[str, Any], message: str):
    """Both sides of a contradiction are named, before anything is touched."""
    with pytest.raises(InputError, match=message):
        Options(image="redis")._replace(**changes).check()
