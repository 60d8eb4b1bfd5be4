# ruff: noqa: INP001, T201 - a program of its own, which talks to whoever started it
"""What scripts/demo runs: a host, a remote machine and a containerd, and commands typed on both.

Every command shown is run by a shell as it is shown, and its output is printed as it comes. What it should say
is compared; the first difference ends the demo with exit code 1. Of the tests it takes the two machines
(lab), the images and the containerd; a directory in front of the PATH makes `ctrport` mean this checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from containerd_instance import RUNC_STATE, STANDARD_PATH, Containerd
from images import BUSYBOX, ENVIRONMENT, REDIS, File, libraries, web_image, write_image
from lab import DIRECTORY, REFUSED, Lab, Netns, http_get, machine_state, until
from program import Cli, Watcher

if TYPE_CHECKING:
    from collections.abc import Callable

HOST, REMOTE = "192.0.2.1", "192.0.2.2"
MAP = "map inet ctrport published4"
REDIS_CLI = Path("/usr/bin/redis-cli")
WIDTH = 88
LOG_PATIENCE = 5.0  # seconds from what the kernel shows to the line that tells of it


class Wrong(Exception):  # noqa: N818 - it is the demo that is wrong, not the program
    """Something shown was not as it should be."""


# ------------------------------------------------------------------------------------------------ the stage


class Stage(Containerd):
    """The two machines with what runs on them: a containerd with two images, and the watcher."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab.host)
        self.lab = lab
        # runc keeps the containers of all containerds of a machine in one place, by namespace and name.
        self.namespace = f"demo-{self.token[:4]}"
        self.cli = Cli(self, Path(tempfile.mkdtemp(prefix="ctrport-demo-")))  # type: ignore[arg-type]
        self.watcher = Watcher(self.cli)
        self._made: list[str] = []
        self._log_shown = 0

    def start(self) -> None:
        """Start containerd and import the images."""
        super().start()
        for build, ref in (
            (redis_image, "docker.io/library/redis:alpine"),
            (web_image, "docker.io/library/web:latest"),
        ):
            archive = build(self.directory / "image.tar", ref)
            self.import_image(archive, namespace=self.namespace)
            archive.unlink()

    def environment_of(self, machine: Netns) -> dict[str, str]:
        """Give the environment of a shell on one of the machines."""
        bin_ = self.directory / "bin"
        if not bin_.exists():
            bin_.mkdir()
            command = shlex.join(self.cli.argv())
            (bin_ / "ctrport").write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            (bin_ / "ctrport").chmod(0o755)
        ours = {"PATH": f"{bin_}:{STANDARD_PATH}", "CONTAINERD_NAMESPACE": self.namespace}
        return {**self.cli.environment, **ours} if machine is self.lab.host else {"PATH": STANDARD_PATH}

    def new_netns(self, name: str) -> Netns:
        """Make a namespace as `ip netns add` does, for a network that ctrport has no part in."""
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
        self._made.append(name)
        made = Netns.at(DIRECTORY / name, name)
        made.ip("link set lo up")
        return made

    def new_log_lines(self) -> list[str]:
        """Give what the watcher has said since this was last asked, without the time."""
        lines = self.watcher.log.splitlines()
        new = lines[self._log_shown :]
        self._log_shown = len(lines)
        return [re.sub(r"^\S+ \S+ \w+ +", "", line).replace(self.address, "$CONTAINERD_ADDRESS") for line in new]

    def stop(self) -> None:
        """End everything and remove everything, however far it came."""
        left = [json.loads(path.read_text())["netns"] for path in self.cli.root.glob("networks/*/leases/*")]
        with contextlib.ExitStack() as stack:  # each of them, whatever happens to the others
            stack.callback(self._remove_netns, left + self._made)
            stack.callback(self._remove_namespace)
            stack.callback(self.cli.close)
            stack.callback(super().stop)
            if self.watcher.running:
                stack.callback(self.watcher.kill)

    def _remove_namespace(self) -> None:
        """Remove the empty directories that runc keeps for a namespace of containerd."""
        groups = Path("/sys/fs/cgroup")
        for path in (RUNC_STATE, groups, *groups.glob("*/")):  # version 2, and each hierarchy of version 1
            with contextlib.suppress(OSError):
                (path / self.namespace).rmdir()

    @staticmethod
    def _remove_netns(names: list[str]) -> None:
        for name in names:
            if (DIRECTORY / name).exists():
                subprocess.run(["ip", "netns", "delete", name], check=False, timeout=10)


def redis_image(path: Path, ref: str) -> Path:
    """Write an image with this machine's redis-server and redis-cli, and the libraries that they need."""
    root = {
        "/etc/passwd": File(b"root:x:0:0:root:/:/bin/sh\n"),
        "/bin/busybox": File(BUSYBOX.read_bytes(), 0o755),
        "/bin/sh": File(link="busybox"),
        "/usr/bin/redis-server": File(REDIS.read_bytes(), 0o755),
        "/usr/bin/redis-cli": File(REDIS_CLI.read_bytes(), 0o755),
        **{name: File(mode=0o755, directory=True) for name in ("/data", "/dev", "/proc", "/run", "/sys", "/tmp")},  # noqa: S108
    }
    root |= libraries(REDIS, REDIS_CLI)
    return write_image(
        path,
        ref,
        root,
        cmd=["redis-server", "--protected-mode", "no", "--save", ""],
        env=ENVIRONMENT,
        exposed=["6379/tcp"],
        workdir="/data",
    )


# --------------------------------------------------------------------------------------------- the telling


class Terminal:
    """Commands and what they say, as in a terminal; bold and dim only where there is one."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._prompts = {stage.lab.host: "host", stage.lab.remote: "remote"}
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._bold, self._dim, self._plain = ("\033[1m", "\033[2m", "\033[0m") if colours else ("", "", "")

    def heading(self, text: str) -> None:
        print(f"\n{self._bold}--- {text}{self._plain}", flush=True)

    def comment(self, text: str) -> None:
        """Print a paragraph between commands."""
        lines = textwrap.wrap(" ".join(text.split()), WIDTH - 2)
        print("\n" + "\n".join(f"{self._dim}# {line}{self._plain}" for line in lines), flush=True)

    def host(self, command: str, says: str | None = None, *, fails: bool = False) -> str:
        return self._type(self._stage.lab.host, command, says, fails=fails)

    def remote(self, command: str, says: str | None = None, *, fails: bool = False) -> str:
        return self._type(self._stage.lab.remote, command, says, fails=fails)

    def watcher_said(self, *expected: str) -> None:
        """Print the watcher's new log lines; each of the expressions must be found in them, soon at the latest."""
        lines: list[str] = []
        deadline = time.monotonic() + LOG_PATIENCE
        while missing := [pattern for pattern in expected if not re.search(pattern, "\n".join(lines))]:
            if time.monotonic() > deadline:
                raise Wrong(f"the watcher did not say: {missing[0]}")
            time.sleep(0.02)
            lines += self._stage.new_log_lines()
        for line in lines:
            print(f"{self._dim}  watch: {line}{self._plain}", flush=True)

    def _type(self, machine: Netns, command: str, says: str | None, *, fails: bool) -> str:
        """Run a command on a machine; `says` is a regular expression that must match its whole output."""
        prompt = f"{self._prompts[machine]}# "
        shown = command.replace("\n", "\n" + " " * len(prompt))
        print(f"{prompt}{self._bold}{shown}{self._plain}", flush=True)
        result = subprocess.run(
            machine.argv("bash", "-c", command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            env=self._stage.environment_of(machine),
        )
        output = result.stdout.rstrip("\n")
        if output:
            print(output, flush=True)
        if bool(result.returncode) != fails:
            raise Wrong(f"exit code {result.returncode}, and {'a failure' if fails else '0'} was due: {command}")
        if says is not None and not re.fullmatch(says, output, flags=re.DOTALL):
            raise Wrong(f"not the output that was due ({says}): {command}")
        return output


# ------------------------------------------------------------------------------------------------ the steps


def redis_published(t: Terminal) -> None:
    """Show `ctrport run -p`, and everybody who is to reach the port."""
    t.heading("A container with a published port")
    t.host("ctrport run -d --name redis -p 6379:6379 redis:alpine", "redis")
    t.comment("From another machine, over IPv4 and IPv6:")
    t.remote(f"redis-cli -h {HOST} PING", "PONG")
    t.remote(f"redis-cli -h {HOST} SET greeting 'hello from afar'", "OK")
    t.remote("redis-cli -h 2001:db8::1 GET greeting", "hello from afar")
    t.comment("From the host itself, on 127.0.0.1 and on its own address:")
    t.host("redis-cli -h 127.0.0.1 GET greeting", "hello from afar")
    t.host(f"redis-cli -h {HOST} GET greeting", "hello from afar")
    t.comment("From a second container, through the host's address:")
    t.host(f"ctrport run --rm redis:alpine redis-cli -h {HOST} GET greeting", "hello from afar")


def web_mapped_by_the_watcher(t: Terminal, stage: Stage) -> None:
    """Show a container that no command of ours has started."""
    t.heading("A container of plain ctr, on a network that is not ours")
    name = f"web-{stage.token[:4]}"
    container = stage.new_netns(name)
    stage.lab.bridge("br0", "198.51.100.1/24")
    container.add_veth(stage.lab.host, "eth0", "veth-web", addresses=("198.51.100.7/24",))
    stage.lab.host.ip("link set veth-web master br0")
    container.ip("route add default via 198.51.100.1")
    t.comment(
        f"The bridge br0 and the namespace {name} were made by hand, as a CNI plugin would. One annotation "
        "asks for the port; the watcher sees the container start and does the rest."
    )
    stage.new_log_lines()
    t.host(
        f"ctr run -d --with-ns network:/run/netns/{name} \\\n"
        "--annotation ctrport.io/publish=8080:80 docker.io/library/web:latest web",
        "",
    )
    # Nothing waits for the watcher here: `ctr run` may return some milliseconds before it has heard of it.
    until(lambda: http_get(stage.lab.remote, HOST, 8080) is not REFUSED, what="port 8080")
    t.watcher_said(r"published demo-\w+/web 8080/tcp -> 198\.51\.100\.7 port 80")
    t.remote(f"busybox wget -q -O - http://{HOST}:8080/", "It works!")
    t.comment("The server sees the remote machine's own address, not the host's:")
    t.remote(f"busybox wget -q -O - http://{HOST}:8080/cgi-bin/whoami", rf"\S*{re.escape(REMOTE)}\S*")


def what_there_is(t: Terminal) -> None:
    """Show the listings, and the kernel's side."""
    t.heading("What is published")
    t.host(
        "ctrport ps",
        r"CONTAINER .*\nredis .*0\.0\.0\.0:6379->6379/tcp.*\nweb .*0\.0\.0\.0:8080->80/tcp.*",
    )
    t.host("ctrport port redis", r"6379/tcp -> 0\.0\.0\.0:6379\n6379/tcp -> \[::\]:6379")
    t.comment("In the kernel a published port is one element of a map, and no rule of its own:")
    t.host(f"nft list {MAP}", r".*tcp \. 6379 .* : \S+ \. 6379.*")
    t.host(
        "ctrport rules | sed -n '/chain publish/,/^\\t}/p'",
        r".*dnat ip addr \. port to meta l4proto \. th dport map @published4.*",
    )
    t.comment("What the kernel has is what it should have:")
    t.host("ctrport rules --diff && echo no difference", "no difference")


def the_end_of_both(t: Terminal, stage: Stage) -> None:
    """Show a stop by our command, and a kill behind our back."""
    t.heading("Stopped is closed")
    stage.new_log_lines()
    t.host("ctrport stop redis", "redis")
    t.remote(f"redis-cli -h {HOST} PING", r".*Connection refused", fails=True)
    t.comment("A container that dies by itself is noticed, too:")
    t.host("ctr tasks kill --signal SIGKILL web", "")
    # The kernel refuses for want of a listener as well: only the map tells that the port is unpublished.
    until(lambda: "elements" not in stage.lab.host.nft(f"list {MAP}\n"), what="an empty map")
    t.watcher_said(r"unpublished demo-\w+/redis", r"unpublished demo-\w+/web")
    t.remote(f"busybox wget -q -O - http://{HOST}:8080/", r".*Connection refused", fails=True)
    t.host("ctrport rm redis web", "redis\nweb")
    t.host("ctrport ps --all", r"CONTAINER [A-Z ]+")


def nothing_left(t: Terminal, stage: Stage) -> None:
    """Show that the rules outlive the watcher, and what takes them away."""
    t.heading("And gone")
    t.comment("Without the watcher the rules stay as they are; flush takes everything of ours out of the kernel.")
    print("host# kill %1", flush=True)
    if code := stage.watcher.terminate():
        raise Wrong(f"the watcher ended with exit code {code}")
    t.watcher_said("stopping; the rules stay")
    t.host("nft list tables", "table inet ctrport\ntable inet ctrport-user")
    gone = [r"removed table inet ctrport", r"removed table inet ctrport-user", r"removed interface ctrport0"]
    t.host("ctrport flush", "\\n".join([*gone, r".*ip_forward from 1 to 0.*"]))
    t.host("nft list tables", "")


def play(stage: Stage) -> None:
    """Show everything."""
    t = Terminal(stage)
    version = stage.ctr("--version").split()[2].split("~")[0]
    t.comment(
        f"Two machines on one wire: host ({HOST}, 2001:db8::1) and remote ({REMOTE}). The host runs "
        f"containerd {version} with the images redis:alpine and web, built just now from this machine's "
        "redis-server and busybox; its socket is in CONTAINERD_ADDRESS, its namespace in CONTAINERD_NAMESPACE."
    )
    print("host# ctrport watch &", flush=True)
    stage.watcher.start()
    t.watcher_said("watching containerd")
    redis_published(t)
    web_mapped_by_the_watcher(t, stage)
    what_there_is(t)
    the_end_of_both(t, stage)
    nothing_left(t, stage)


# ------------------------------------------------------------------------------------------ before and after


def own_network() -> dict[str, str]:
    """Give this machine's own rules and interfaces: what the demo must not touch.

    Namespaces, mounts and processes, which others may change meanwhile, are not compared.
    """
    sections = re.findall(r"^\[(\w+)\]\n(.*?)(?=^\[\w+\]\n|\Z)", machine_state(), flags=re.MULTILINE | re.DOTALL)
    return {name: text for name, text in sections if name in ("rules", "links")}


def interrupt(*_: object) -> NoReturn:
    """End by any signal as by Ctrl-C."""
    raise KeyboardInterrupt


def on_signals(action: Callable[..., object] | signal.Handlers) -> None:
    """Set what Ctrl-C, a kill and a closed terminal do."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


def main() -> int:
    """Play, clean up, compare; gives the exit code."""
    began = time.monotonic()
    before = own_network()
    code = 0
    on_signals(interrupt)
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab(forwarding=False))
            stage = Stage(lab)
            stack.callback(stage.stop)
            stage.start()
            play(stage)
        except (Wrong, AssertionError, OSError, subprocess.SubprocessError) as error:
            print(f"\ndemo: FAILED: {error}", file=sys.stderr)
            code = 1
        except KeyboardInterrupt:
            print("\ndemo: interrupted, cleaning up", file=sys.stderr)
            code = 130
        on_signals(signal.SIG_IGN)  # nothing is to interrupt the cleaning up
    after = own_network()
    for name in before:
        if before[name] != after[name]:
            print(f"demo: FAILED: this machine's own {name} have changed", file=sys.stderr)
            code = 1
    if not code:
        print(
            f"\nEverything was as it should be, in {time.monotonic() - began:.0f} s. All of it is gone again; "
            "this machine's own\nfirewall rules and network interfaces are as they were before."
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
