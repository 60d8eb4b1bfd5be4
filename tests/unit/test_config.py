"""config.toml: what it may say, and what is told when it says something else."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrport import config
from ctrport.config import AT_START, Config, render
from ctrport.errors import InputError
from ctrport.model.policy import Policy, Rule, Span
from ctrport.model.ports import Protocol

PROJECT = Path(__file__).parents[2]
KEYS = {f.name for f in fields(Config)} - {"sysctl_directory_given"}
RULE = '[[policy.allow]]\ncontainerd_namespaces = ["default"]\n'


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path: Path):
    """Every key has a default, and so has a file that is not there."""
    assert config.load(write(tmp_path, "# nothing\n"), required=True) == Config()
    assert config.load(tmp_path / "none.toml", required=False) == Config()


def test_every_key(tmp_path: Path):
    """The values are taken; whole numbers will do for seconds."""
    path = write(
        tmp_path,
        "mark = 0x40\nresync_seconds = 5\ntimeout_seconds = 2.5\n"
        "reserve_ports = false\nrelay_ipv6_loopback = true\n"
        'sysctl_directory = "/srv/sysctl.d"\n'
        'adjust_nftables = true\nfirewalld_zone = "internal"\n'
        'cni_config = "/srv/net.d"\ncni_plugins = ["/srv/bin", "/opt/cni/bin"]\n'
        "[policy]\ntrust_labels = true\nprotected_ports = [16443]\n"
        '[[policy.allow]]\nkubernetes_namespaces = ["web", "team-*"]\nlabels = { tier = "edge", a = "" }\n'
        'host_ports = [443, "8000-8999"]\nhost_ips = ["192.0.2.0/24", "2001:db8::1"]\nprotocols = ["tcp", "sctp"]\n'
        '[[policy.allow]]\ncontainerd_namespaces = ["*"]\nhost_ports = []\n',
    )
    assert config.load(path, required=True) == Config(
        mark=0x40,
        resync_seconds=5.0,
        timeout_seconds=2.5,
        adjust_nftables=True,
        firewalld_zone="internal",
        cni_config=Path("/srv/net.d"),
        cni_plugins=(Path("/srv/bin"), Path("/opt/cni/bin")),
        reserve_ports=False,
        policy=Policy(
            trust_labels=True,
            protected_ports=(Span(16443, 16443),),
            allow=(
                Rule(
                    kubernetes_namespaces=("web", "team-*"),
                    labels=(("a", ""), ("tier", "edge")),
                    host_ports=(Span(443, 443), Span(8000, 8999)),
                    host_ips=(ip_network("192.0.2.0/24"), ip_network("2001:db8::1")),
                    protocols=(Protocol.TCP, Protocol.SCTP),
                ),
                Rule(containerd_namespaces=("*",), host_ports=()),
            ),
        ),
        sysctl_directory=Path("/srv/sysctl.d"),
        sysctl_directory_given=True,
        relay_ipv6_loopback=True,
    )


def test_no_directory_for_settings(tmp_path: Path):
    """An empty name turns the file off; the default's own name, given, is another thing than the default."""
    off = config.load(write(tmp_path, 'sysctl_directory = ""\n'), required=True)
    assert (off.sysctl_directory, off.sysctl_directory_given) == (None, True)
    named = config.load(write(tmp_path, 'sysctl_directory = "/run/sysctl.d"\n'), required=True)
    assert (named.sysctl_directory, named.sysctl_directory_given) == (Config().sysctl_directory, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("marks = 1\n", "unknown key 'marks'"),
        ("mark = 3\n", "mark: 3 is not a single bit of 32"),
        ("mark = 0\n", "mark: 0 is not a single bit of 32"),
        ("mark = -1\n", "mark: -1 is not a single bit of 32"),
        ("mark = -2147483648\n", "is not a single bit of 32"),
        ("mark = 0x100000000\n", "is not a single bit of 32"),
        ("mark = true\n", "is not a single bit of 32"),
        ('mark = "0x10000"\n', "is not a single bit of 32"),
        ("resync_seconds = 0\n", "is not a number of seconds"),
        ("resync_seconds = -1\n", "is not a number of seconds"),
        ("resync_seconds = nan\n", "is not a number of seconds"),
        ("timeout_seconds = inf\n", "is not a number of seconds"),
        ("timeout_seconds = false\n", "is not a number of seconds"),
        ("timeout_seconds = [1]\n", "is not a number of seconds"),
        ("adjust_nftables = 1\n", "1 is neither true nor false"),
        ("relay_ipv6_loopback = 1\n", "relay_ipv6_loopback: 1 is neither true nor false"),
        ("reserve_ports = 1\n", "reserve_ports: 1 is neither true nor false"),
        ('firewalld_zone = "a b"\n', "'a b' is not the name of a firewalld zone"),
        ('cni_config = "net.d"\n', "cni_config: 'net.d' is not the absolute path"),
        ('cni_plugins = "/opt/cni/bin"\n', "is not a list of directories"),
        ("sysctl_directory = false\n", "sysctl_directory: False is not the absolute path"),
        ('sysctl_directory = "run"\n', "sysctl_directory: 'run' is not the absolute path"),
        ("cni_plugins = []\n", "is not a list of directories"),
        ('cni_plugins = ["/a:/b"]\n', "'/a:/b' is not the absolute path"),
        ("mark = \n", "Invalid value"),
        (b"\xff\n", "invalid start byte"),
        ("mark = 1\n\nmarks = 1\n", "line 3: marks: unknown key 'marks'"),
        ("mark = 1\nresync_seconds = 0\n", "line 2: resync_seconds: 0 is not"),
        ('cni_plugins = [\n "/a",\n "b",\n]\n', "line 1: cni_plugins[1]: 'b' is not"),
        ("policy = 1\n", "line 1: policy: 1 is not a table"),
        ("[policy]\ndeny = []\n", "line 2: policy.deny: unknown key 'deny'"),
        ('[policy]\ntrust_labels = "yes"\n', "line 2: policy.trust_labels: 'yes' is neither true nor false"),
        ("[policy]\nallow = 1\n", "line 2: policy.allow: 1 is not a list of rules"),
        ("[policy]\nallow = [1]\n", "line 2: policy.allow[0]: 1 is not a table"),
        ("[[policy.allow]]\nhost_ports = [1]\n", "line 1: policy.allow[0]: a rule is for containerd_namespaces or"),
        (
            RULE + 'kubernetes_namespaces = ["web"]\n',
            "line 1: policy.allow[0]: a rule is for containerd_namespaces or",
        ),
        (RULE + "\n" + RULE + "host_port = 1\n", "line 6: policy.allow[1].host_port: unknown key 'host_port'"),
        (RULE + "host_ports = 80\n", "line 3: policy.allow[0].host_ports: 80 is not a list of host ports"),
        (RULE + "host_ports = [0]\n", "line 3: policy.allow[0].host_ports: 0 is not a port"),
        (RULE + "host_ports = [true]\n", "True is not a port"),
        (RULE + "host_ports = [-1]\n", "-1 is not a port"),
        (RULE + 'host_ports = ["9-8"]\n', "'9-8' is not a port"),
        (RULE + 'host_ports = ["1-65536"]\n', "'1-65536' is not a port"),
        (RULE + 'host_ports = ["\u0661"]\n', "is not a port"),
        (RULE + 'host_ips = ["192.0.2.1/24"]\n', "'192.0.2.1/24' is not an address or a network: "),
        (RULE + "host_ips = [1]\n", "1 is not an address"),
        (RULE + 'host_ips = ["example.org"]\n', "'example.org' is not an address"),
        (RULE + 'protocols = ["TCP"]\n', "line 3: policy.allow[0].protocols: 'TCP' is not a protocol"),
        (RULE + 'labels = ["tier"]\n', "is not a table of labels"),
        (RULE + "labels = { tier = 1 }\n", "is not a table of labels"),
        (
            "[[policy.allow]]\nkubernetes_namespaces = []\n",
            "line 2: policy.allow[0].kubernetes_namespaces: names no",
        ),
        ('[[policy.allow]]\nkubernetes_namespaces = ["a b"]\n', "'a b' is not a namespace's name"),
        ('[[policy.allow]]\nkubernetes_namespaces = [""]\n', "'' is not a namespace's name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str | bytes, message: str):
    """File, key and value are told."""
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        config.load(path, required=False)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message


def test_a_file_that_was_asked_for(tmp_path: Path):
    """Named on the command line it must be there, and be a file."""
    with pytest.raises(InputError, match="no configuration file at"):
        config.load(tmp_path / "none.toml", required=True)
    with pytest.raises(InputError, match="Is a directory"):
        config.load(tmp_path, required=False)


def uncommented(text: str, mark: str) -> str:
    """Give the lines that begin with a mark, without it."""
    return "".join(f"{line.removeprefix(mark)}\n" for line in text.splitlines() if re.match(mark + r"[\w\[]", line))


def test_the_file_that_is_shipped(tmp_path: Path):
    """It changes nothing; without the # it has every key and its default, and its examples can be taken."""
    text = (PROJECT / "packaging" / "config.toml").read_text()
    assert config.load(write(tmp_path, text), required=True) == Config()
    keys = uncommented(text, "#")
    assert config.load(write(tmp_path, keys), required=True) == Config(sysctl_directory_given=True)
    named = set(re.findall(r"^(\w+) = ", keys, flags=re.MULTILINE))
    assert named == (KEYS - {"policy"}) | {"trust_labels", "protected_ports"}
    examples = config.load(write(tmp_path, uncommented(text, "#   ")), required=True).policy.allow
    assert {f.name for f in fields(Rule)} == {
        f.name for f in fields(Rule) if any(getattr(rule, f.name) not in (None, ()) for rule in examples)
    }


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (PROJECT / "docs").glob("*.md"))])
def test_examples_in_the_documents_can_be_taken(tmp_path: Path, page: str):
    """Each block of TOML is a file that is good by itself."""
    blocks = re.findall(r"^```toml\n(.*?)^```", (PROJECT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= {"docs/policy.md": 5}.get(page, 0)
    for block in blocks:
        assert config.load(write(tmp_path, block), required=True) != Config()


def test_the_settings_in_the_documents_are_all_there_are():
    """docs/install.md has a line for every key."""
    table = (PROJECT / "docs" / "install.md").read_text().partition("| key |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == KEYS


def test_what_waits_for_a_restart():
    """A running watcher keeps what it has built upon, and takes all else."""
    old, new = Config(), Config(mark=0x40, reserve_ports=False, resync_seconds=5, policy=Policy(trust_labels=True))
    assert config.taken_over(old, new) == (
        Config(resync_seconds=5, policy=Policy(trust_labels=True)),
        ("mark", "reserve_ports"),
    )
    assert config.taken_over(old, replace(old, resync_seconds=5.0)) == (replace(old, resync_seconds=5.0), ())
    assert set(AT_START) <= {f.name for f in fields(Config)}


LABELS = st.dictionaries(st.text(min_size=1, max_size=3), st.text(max_size=3), max_size=2)


@given(
    labels=LABELS.map(lambda found: tuple(sorted(found.items()))),
    ports=st.none() | st.lists(st.integers(1, 65535).map(lambda p: Span(p, min(65535, p + p % 3)))).map(tuple),
    seconds=st.floats(0.1, 86400),
    zone=st.from_regex(r"[A-Za-z0-9_./-]{0,64}", fullmatch=True),
)
def test_what_is_shown_is_what_is_in_force(
    tmp_path_factory: pytest.TempPathFactory, labels: object, ports: object, seconds: float, zone: str
):
    """What `config show` prints can be put into a file, and is the same configuration."""
    rule = Rule(kubernetes_namespaces=("web",), labels=labels, host_ports=ports)
    made = Config(
        sysctl_directory=None,
        sysctl_directory_given=True,
        resync_seconds=seconds,
        firewalld_zone=zone,
        policy=Policy(allow=(rule,)),
    )
    path = write(tmp_path_factory.getbasetemp(), render.toml(render.plain(made)))
    assert config.load(path, required=True) == made
