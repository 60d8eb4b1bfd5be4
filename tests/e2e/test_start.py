"""`start`: stopped containers come back as they were, also after a reboot."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from lab import REFUSED, Failure, http_get, serve, until

if TYPE_CHECKING:
    import pytest

    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"


def page(lab: Lab, port: int) -> str | Failure:
    return http_get(lab.remote, HOST, port)


def answers(lab: Lab, port: int, *, within: float = 5.0) -> None:
    until(lambda: page(lab, port) == PAGE, within=within, what=f"the page at {port}")


def reboot(ctrport: Cli, lab: Lab, *netns: str) -> None:
    """End everything that a reboot ends: tasks, namespaces, links, rules and the state directory."""
    ctrport.containerd.kill()
    for shim in list(ctrport.containerd._shims()):
        os.kill(shim.pid, signal.SIGKILL)
        ctrport.containerd._runc_delete(shim.namespace, shim.container)
    until(lambda: not list(ctrport.containerd._shims()), what="the end of the shims")
    for path in netns:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=10)
    lab.reset_host()
    for path in ctrport.state.iterdir():
        path.unlink()
    ctrport.containerd.start()


def test_stop_and_start(program: Cli, lab: Lab, request: pytest.FixtureRequest):
    """A stopped container starts at its address, with its ports, files and output; twice is said, and no error."""
    with program.container("-p", "8080:80", "-p", "9000-9001:80") as name, program.container(word="other"):
        answers(lab, 8080)
        before = program.entry(name)
        program("stop", "-t", "0", name, check=True)
        assert page(lab, 8080) is REFUSED
        started = program("start", name)
        assert (started.returncode, started.stdout) == (0, f"{name}\n")
        assert ("no watcher runs" in started.stderr) == ("alone" in request.node.name)
        answers(lab, 8080)
        answers(lab, 9000)
        assert program.entry(name) == before
        assert program.execute(name, "cat", "/etc/hostname") == f"{name}\n"
        again = program("start", name)
        assert (again.returncode, again.stdout, again.stderr) == (0, f"{name}\n", f"ctrport: {name} runs already\n")
        several = program("start", name, "nobody")
        assert (several.returncode, several.stdout, "nobody" in several.stderr) == (1, f"{name}\n", True)


def test_a_container_that_ended_by_itself(program: Cli, lab: Lab):
    """A container whose task has ended and was not deleted is started again."""
    with program.container("-p", "8080:80") as name:
        answers(lab, 8080)
        program.containerd.ctr("tasks", "kill", "-s", "KILL", name)
        until(lambda: program.entry(name)["status"] == "stopped", what="the end of the task")
        program("start", name, check=True)
        answers(lab, 8080)


def test_a_restart_policy_holds_again(ctrport: Cli, watcher: Watcher, lab: Lab):
    """`stop` suspends a restart policy and `start` puts it back: a killed task comes back by itself."""
    assert watcher.running
    with ctrport.container("--restart", "always", "-p", "8080:80") as name:
        answers(lab, 8080)
        ctrport("stop", "-t", "0", name, check=True)
        ctrport("start", name, check=True)
        answers(lab, 8080)
        time.sleep(2.5)  # two looks of the restart monitor: nothing for it to do
        assert ctrport.entry(name)["status"] == "running"
        ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
        until(lambda: page(lab, 8080) is REFUSED, what="the end of the task")
        answers(lab, 8080, within=20)


def test_after_a_reboot(ctrport: Cli, lab: Lab):
    """After a reboot `start` makes network and rules again, with what was changed live, watcher or not."""
    from program import Watcher  # noqa: PLC0415

    with ctrport.container("-p", "8080:80", "-p", "8081:80") as name:
        answers(lab, 8080)
        ctrport("unpublish", name, "8081:80", check=True)
        ctrport("publish", name, "8082:80", check=True)
        before = ctrport.entry(name)
        ctrport("stop", "-t", "0", name, check=True)
        for watched in (False, True):
            reboot(ctrport, lab, before["netns"])
            watcher = Watcher(ctrport)
            if watched:
                watcher.start()
            ctrport("start", name, check=True)
            answers(lab, 8080)
            answers(lab, 8082)
            assert page(lab, 8081) is REFUSED
            assert ctrport.entry(name) == before
            assert ctrport("rules", "--diff").stdout == ""
            if watched:
                watcher.terminate()


def test_a_port_taken_meanwhile(program: Cli, lab: Lab):
    """A container whose port somebody took starts, and the port and its holder are told as an error."""
    with program.container("-p", "8080:80", "-p", "8081:80") as name:
        answers(lab, 8080)
        program("stop", "-t", "0", name, check=True)
        with serve(lab.host, 8080) as server:
            started = program("start", name)
            assert (started.returncode, started.stdout) == (1, "")
            assert f"container {name} runs, but not with all of its ports: container port 80: " in started.stderr
            assert f"(pid {server.pid})" in started.stderr
            answers(lab, 8081)


def test_what_cannot_be_started(ctrport: Cli, lab: Lab):
    """A container of somebody else's, and one whose namespace is gone, are refused with what to do instead."""
    ns = lab.container_like("plain", lab.bridge("br0", "198.51.100.1/24"), "198.51.100.2/24")
    name = ctrport.containerd.unique("plain")
    ctrport.containerd.ctr("run", "-d", "--with-ns", f"network:{ns.path}", ctrport.containerd.image, name)
    ctrport("stop", "-t", "0", name, check=True)
    refused = ctrport("start", name)
    assert (refused.returncode, f"container {name} was not made by ctrport run" in refused.stderr) == (1, True)
    assert f"ctr -n default tasks start -d {name}" in refused.stderr
    ctrport("rm", name, check=True)
    pod, member = ctrport.containerd.unique("pod"), ctrport.containerd.unique("member")
    for each, network in ((pod, "default"), (member, f"container:{pod}")):
        command = (ctrport.containerd.image, "sleep", "600")
        ctrport("run", "-d", "--name", each, "--network", network, *command, check=True)
    ctrport("stop", "-t", "0", member, check=True)
    ctrport("rm", "-f", pod, check=True)
    gone = ctrport("start", member)
    assert (gone.returncode, "its network namespace" in gone.stderr) == (1, True)
    ctrport("rm", member, check=True)
