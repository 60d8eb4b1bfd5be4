"""What goes wrong says what and how to mend it, ends with the documented code, and leaves nothing behind.

Exit codes: 2 for bad usage, 125 when `run` failed, 1 for other commands that failed.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ctrport.cli import main
from lab import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from program import Cli

CASES = json.loads((Path(__file__).parents[1] / "unit" / "port_specs.json").read_text("utf-8"))["cases"]
INVALID = [case["spec"] for case in CASES if not case["valid"]]
SLEEP = ("sleep", "600")

# Stands in front of `python -m ctrport`: the module nftables cannot be imported.
WITHOUT_NFTABLES = """
import runpy, sys
sys.modules["nftables"] = None
sys.argv[0] = "ctrport"
runpy.run_module("ctrport", run_name="__main__", alter_sys=True)
"""
# A kernel without nf_tables answers EINVAL to its netlink messages, which cannot be brought about on a kernel that
# has it: the module below has our netlink sockets say so, and says what libnftables 1.0.6 says then.
STUB_NFTABLES = """
import errno
from ctrport.host.netlink import Netlink

def answers(self, *words, answers=Netlink._answers):
    if self._socket.proto == 12:
        raise OSError(errno.EINVAL, "Invalid argument")
    return answers(self, *words)

Netlink._answers = answers

class Nftables:
    def __getattr__(self, name): return lambda *arguments: None
    def cmd(self, script):
        return 1, "", "Error: cache initialization failed: Protocol not supported\\n"
"""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Give a function that runs a command in this process: exit code, standard output and standard error."""
    log = logging.getLogger("ctrport")
    before = log.handlers[:], log.propagate, log.level

    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["ctrport", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    yield run
    log.handlers[:], log.propagate, log.level = before


@pytest.fixture
def primed(ctrport: Cli) -> Cli:
    """Give the program on a host where a container has been before: table, bridge and settings are there."""
    ctrport(
        "run", "--rm", "--name", ctrport.containerd.unique("first"), ctrport.containerd.image, "true", check=True
    )
    return ctrport


def fails(ctrport: Cli, code: int, *said: str, arguments: tuple[str, ...], **options: Any) -> None:
    """Run a command that must fail, say all of `said`, name the mend, and change nothing."""
    before = ctrport.everything()
    result = ctrport(*arguments, **options)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    for words in (*said, "\n  mend: "):
        assert words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert ctrport.everything() == before


def run(ctrport: Cli, *options: str, image: str | None = None, command: tuple[str, ...] = SLEEP) -> tuple[str, ...]:
    name = ctrport.containerd.unique("bad")
    return ("run", "-d", "--name", name, *options, image or ctrport.containerd.image, *command)


# ------------------------------------------------------------------------------------------------ bad usage


@pytest.mark.parametrize("spec", [*INVALID, "8080:0", "0", "80/tcp/udp", "x\x1b[2J:80"], ids=ascii)
def test_invalid_specs(in_process: Any, spec: str):
    """A spec outside the grammar is exit code 2, quoted in printable ASCII, with a hint."""
    code, output, said = in_process("run", "-d", f"--publish={spec}", "redis")
    assert (code, output) == (2, "")
    assert said.startswith(f"ctrport: port spec {spec!a}: ")
    assert "\n  mend: " in said
    assert "\x1b" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-p", "8080:80", "-p", "8080:81"), "host port 8080/tcp is asked for twice"),
        (("-p", "8080:80", "-p", "127.0.0.1:8080:80"), "host port 8080/tcp is asked for twice"),
        (("-p", "8080-8082:80-82", "-p", "8081:90"), "host port 8081/tcp is asked for twice"),
        (("--name", "a b"), "--name 'a b'"),
        (("--network", "none", "-p", "80"), "--network none"),
        (("--network", "container:", "-p", "80"), "container:"),
        (("--restart", "sometimes", "-d"), "--restart 'sometimes'"),
        (("--restart", "always"), "--restart always"),
        (("--rm", "-d", "--restart", "always"), "--rm and --restart always"),
        (("--pull", "perhaps"), "--pull 'perhaps'"),
        (("-m", "much"), "'much'"),
        (("--cpus", "-1"), "--cpus -1"),
        (("--cpus", "nan"), "--cpus nan"),
        (("-v", "data:/data"), "-v 'data:/data'"),
        (("-v", "/data"), "-v '/data'"),
        (("--mount", "type=volume,target=/x"), "--mount 'type=volume,target=/x'"),
        (("--dns", "localhost"), "--dns 'localhost'"),
        (("--add-host", "db"), "--add-host 'db'"),
        (("--ip", "10.0.0"), "--ip '10.0.0'"),
        (("--env", "=x"), "'=x'"),
        (("--env-file", "/no/such/file"), "/no/such/file"),
        (("--label", "x"), "--label 'x'"),
        (("--expose", "abc"), "'abc'"),
        (("-u", "a:b:c"), "'a:b:c'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(in_process: Any, arguments: tuple[str, ...], said: str):
    """An option that makes no sense is exit code 2 and named, before anything is touched."""
    code, output, error = in_process("run", *arguments, "redis")
    assert (code, output) == (2, "")
    assert said in error


@pytest.mark.parametrize("image", ["", "-x", "a b", "$(reboot)", "/etc/passwd"])
def test_bad_image_names(ctrport: Cli, image: str):
    """What is no image reference is exit code 2."""
    result = ctrport("run", "-d", "--", image)
    assert (result.returncode, result.stdout) == (2, "")
    assert ascii(image) in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mark = 3", "mark: 3 is not a single bit"),
        ("mark = 0", "mark: 0 is not a single bit"),
        ("mark = 4294967296", "mark: 4294967296"),
        ('mark = "x"', "mark: 'x'"),
        ("resync_seconds = 0", "resync_seconds: 0"),
        ("timeout_seconds = true", "timeout_seconds: True"),
        ("marc = 1", "unknown key 'marc'"),
        ("mark = ", "config.toml"),
    ],
)
def test_bad_configuration(ctrport: Cli, text: str, said: str):
    """A configuration file with a mistake is exit code 2 for every command; file and key are named."""
    ctrport.config.write_text(text)
    for arguments in (run(ctrport, "-p", "8080:80"), ("ps",), ("watch",)):
        result = ctrport(*arguments)
        assert (result.returncode, result.stdout) == (2, "")
        assert said in result.stderr
        assert str(ctrport.config) in result.stderr


def test_no_configuration_where_one_is_named(ctrport: Cli):
    """A configuration file that is asked for and not there is an error, not a default."""
    result = ctrport("--config", "/no/such/config.toml", "ps")
    assert (result.returncode, result.stdout) == (2, "")
    assert "no configuration file at /no/such/config.toml" in result.stderr


# ------------------------------------------------------------------------------------------------- failures


def test_an_image_that_is_not_there(primed: Cli):
    """An unknown image is named, with the command that pulls it; a registry that refuses is reported."""
    fails(
        primed,
        125,
        "image docker.io/library/nothing:latest is not in namespace default",
        "ctr -n default images pull docker.io/library/nothing:latest",
        arguments=run(primed, "-p", "8080:80", "--pull", "never", image="nothing"),
    )
    fails(
        primed,
        125,
        "could not pull image 192.0.2.2:5001/nothing:1",
        "connection refused",
        arguments=run(primed, "-p", "8080:80", image="192.0.2.2:5001/nothing:1"),
    )


def test_a_name_in_use(primed: Cli):
    """A name that a container has is refused, with the command that frees it."""
    with primed.container("-p", "8080:80") as name:
        arguments = ("run", "-d", "--name", name, "-p", "8081:80", primed.containerd.image)
        fails(primed, 125, f"a container named {name} exists already", f"ctrport rm {name}", arguments=arguments)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_a_port_in_use(primed: Cli, request: pytest.FixtureRequest, *, watched: bool):
    """A port that a container, a program of the host or nobody's address has is refused, naming the holder."""
    if watched:
        request.getfixturevalue("watcher")
    with primed.container("-p", "8080:80", "-p", "127.0.0.1:5353:53/udp") as name:
        holder = f"held by container default/{name}"
        for spec, where in (
            ("8080:80", "8080/tcp"),
            ("192.0.2.1:8080:81", "8080/tcp"),
            ("[::]:8080:80", "8080/tcp"),
            ("5353:53/udp", "127.0.0.1:5353/udp"),
            ("8080-8080:80", "8080/tcp"),
        ):
            fails(primed, 125, f"{where} is {holder}", arguments=run(primed, "-p", spec))
    lab = primed.containerd.lab
    with serve(lab.host, 8090), serve(lab.host, 8091, "udp", bind="127.0.0.1"):
        fails(primed, 125, "0.0.0.0:8090/tcp is held by", arguments=run(primed, "-p", "8090:80"))
        fails(primed, 125, "127.0.0.1:8091/udp is held by", arguments=run(primed, "-p", "8091:80/udp"))
        before = primed.everything()
        with primed.container("-p", "[::]:8090:80", "-p", "8091:80"):
            pass
        assert primed.everything() == before
    for address in ("198.51.100.9", "2001:db8::9"):
        said = f"host IP {address} is not an address of this host"
        fails(primed, 125, said, arguments=run(primed, "-p", f"{address}:8080:80"))
    fails(primed, 125, "[::1] cannot be published", arguments=run(primed, "-p", "[::1]:8080:80"))


def test_a_network_that_is_not_there(primed: Cli):
    """A network or a container to share a network with that does not exist is named."""
    fails(primed, 125, "no network named 'backend'", arguments=run(primed, "--network", "backend"))
    result = primed(*run(primed, "--network", "container:nobody"))
    assert (result.returncode, "nobody" in result.stderr) == (125, True)


def test_without_containerd(ctrport: Cli):
    """Without containerd at the address every command fails at once, names the address and asks whether it runs."""
    name = ctrport.containerd.unique("bad")
    for code, arguments in (
        (125, ("run", "-d", "--name", name, "-p", "8080:80", "redis")),
        (1, ("ps",)),
        (1, ("port", name)),
        (1, ("sync",)),
        (1, ("rules",)),
        (1, ("stop", name)),
        (1, ("rm", "-f", name)),
    ):
        said = "no containerd at /no/such.sock", "is containerd running"
        fails(ctrport, code, *said, arguments=("-a", "/no/such.sock", *arguments))


def test_a_container_that_is_not_there(ctrport: Cli):
    """stop, rm and port of an unknown container fail with its name."""
    before = ctrport.everything()
    for command in ("stop", "rm", "port"):
        result = ctrport(command, "nobody")
        assert (result.returncode, result.stdout, "nobody" in result.stderr) == (1, "", True), command
    assert ctrport.everything()["containers"] == before["containers"]


def without(ctrport: Cli, *prefix: str, arguments: tuple[str, ...], **options: Any) -> Any:
    """Run the program behind a program that takes something away from it."""
    host = ctrport.containerd.lab.host
    return host.run(*prefix, *ctrport.argv(*arguments), check=False, env=ctrport.environment, **options)


def test_without_root(ctrport: Cli):
    """Another user than root is told so by every command, and nothing is made."""
    ctrport.directory.chmod(0o755)
    before = ctrport.everything()
    user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
    for code, said, arguments in (
        (125, "it must be root", run(ctrport, "-p", "8080:80")),
        (1, "run as root", ("ps",)),
        (1, "run as root", ("sync",)),
        (1, "run as root", ("watch",)),
        (1, "run as root", ("flush",)),
        (1, "run as root", ("rm", "-f", "x")),
    ):
        result = without(ctrport, *user, arguments=arguments)
        assert (result.returncode, result.stdout, said in result.stderr) == (code, "", True), (arguments, result)
    assert ctrport.everything() == before


def test_without_the_right_to_change_the_network(primed: Cli):
    """Root without CAP_NET_ADMIN, as in many containers, is told which right is missing."""
    before = primed.everything()
    prefix = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")
    for code, arguments in ((125, run(primed, "-p", "8080:80")), (1, ("sync",)), (1, ("flush",))):
        result = without(primed, *prefix, arguments=arguments)
        assert (result.returncode, result.stdout) == (code, ""), result
        assert "CAP_NET_ADMIN" in result.stderr
        assert "Traceback" not in result.stderr
        assert primed.everything() == before


def test_without_python3_nftables(ctrport: Cli):
    """Where the module nftables is missing, the Debian package is named, and nothing is made."""
    before = ctrport.everything()
    for code, arguments in ((125, run(ctrport, "-p", "8080:80")), (1, ("sync",)), (1, ("watch",)), (1, ("flush",))):
        argv = ctrport.argv(*arguments)
        prefix = [argv[0], "-c", WITHOUT_NFTABLES]
        host = ctrport.containerd.lab.host
        result = host.run(*prefix, *argv[3:], check=False, env=ctrport.environment)
        assert (result.returncode, result.stdout) == (code, ""), result
        assert "python3-nftables is not installed for this Python" in result.stderr
        assert "apt-get install python3-nftables" in result.stderr
        assert ctrport.everything() == before


def test_without_nf_tables(primed: Cli, tmp_path: Path):
    """On a kernel without nf_tables (as libnftables words it) the modules are named, and nothing is made."""
    (tmp_path / "nftables.py").write_text(STUB_NFTABLES)
    path = f"{tmp_path}:{primed.environment['PYTHONPATH']}"
    for code, arguments in ((125, run(primed, "-p", "8080:80")), (1, ("sync",))):
        said = "this kernel lacks nf_tables", "nft_chain_nat"
        fails(primed, code, *said, arguments=arguments, env={"PYTHONPATH": path})


def test_an_impossible_state_directory(primed: Cli):
    """A state directory that cannot be written is named."""
    before = primed.everything()
    blocked = primed.directory / "file"
    blocked.touch()
    try:
        for code, arguments in ((125, run(primed, "-p", "8080:80")), (1, ("sync",)), (1, ("watch",))):
            result = primed("--state", str(blocked / "state"), *arguments)
            assert (result.returncode, result.stdout) == (code, "")
            assert f"cannot make the state directory {blocked}/state" in result.stderr
    finally:
        blocked.unlink()
    assert primed.everything() == before


def test_help_and_usage(ctrport: Cli):
    """No command and an unknown one are exit code 2 with the usage; --help and --version are 0."""
    for code, arguments in (
        (2, []),
        (2, ["no-such-command"]),
        (2, ["ps", "--no-such-option"]),
        (0, ["--help"]),
        (0, ["run", "--help"]),
    ):
        result = ctrport(*arguments)
        assert (result.returncode, "Usage: ctrport" in result.stdout + result.stderr) == (code, True), arguments
