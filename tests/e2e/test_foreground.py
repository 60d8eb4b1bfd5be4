"""`ctrport run` without -d: exit codes, the three streams, signals and terminals pass through as they are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from lab import REFUSED, http_get, until
from terminal import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from program import Cli

# Prints a line a signal; ends with 7 on USR1, when every earlier one has had its time.
TRAPS = (
    'for s in TERM INT HUP QUIT USR2; do trap "echo $s" $s; done; trap "exit 7" USR1; '
    "echo ready; while :; do sleep 0.05; done"
)


def run(ctrport: Cli, *command: str, options: tuple[str, ...] = (), **other: Any) -> tuple[int, str, str]:
    """Run a command in a container; give exit code, standard output and standard error."""
    name = ctrport.containerd.unique("fg")
    result = ctrport("run", "--rm", *options, "--name", name, ctrport.containerd.image, *command, **other)
    return result.returncode, result.stdout, result.stderr


def lines_of(process: subprocess.Popen[Any], number: int, within: float = 15.0) -> list[str]:
    """Read so many lines of a process's standard output."""
    stream = process.stdout
    assert stream is not None
    os.set_blocking(stream.fileno(), False)
    said = b""

    def enough() -> bool:
        nonlocal said
        said += stream.read() or b""
        return said.count(b"\n") >= number

    until(enough, within=within, what=f"{number} lines")
    os.set_blocking(stream.fileno(), True)
    return said.decode().splitlines()


def test_exit_codes_and_streams(ctrport: Cli):
    """The container's exit code is ours; standard output and error stay apart, and nothing of ours is in them."""
    script = "echo out; echo err >&2; exit 3"
    assert run(ctrport, "sh", "-c", script) == (3, "out\n", "err\n")
    assert run(ctrport, "true") == (0, "", "")
    assert run(ctrport, "sh", "-c", "kill -9 $$; exit 5")[0] in (5, 137)  # the kernel spares a pid 1 from itself


def test_a_killed_container(ctrport: Cli):
    """A container killed by SIGKILL is exit code 137."""
    name = ctrport.containerd.unique("fg")
    process = ctrport.popen(
        *("run", "--rm", "--name", name, "-p", "8080:80", ctrport.containerd.image),
        *("sh", "-c", "echo ready; sleep 600"),
        stdout=subprocess.PIPE,
    )
    assert lines_of(process, 1) == ["ready"]
    ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", name)
    assert process.wait(15) == 137


def test_commands_that_cannot_run(ctrport: Cli):
    """A program that is not there is 127, one that cannot be executed 126, and both leave nothing."""
    run(ctrport, "true")
    before = ctrport.everything()
    for command, code in (("no-such-program", 127), ("/www/index.html", 126), ("/no/such/path", 127)):
        for options in ((), ("-d",)):
            name = ctrport.containerd.unique("fg")
            arguments = ("run", *options, "--name", name, "-p", "8080:80", ctrport.containerd.image, command)
            result = ctrport(*arguments)
            assert (result.returncode, result.stdout) == (code, ""), result.stderr
            assert command in result.stderr
            assert ctrport.everything() == before
    assert http_get(ctrport.containerd.lab.remote, "192.0.2.1", 8080) is REFUSED


def test_standard_input(ctrport: Cli):
    """With -i standard input reaches the program and ends; without, it reads nothing."""
    assert run(ctrport, "cat", options=("-i",), input="one\ntwo\n", timeout=10) == (0, "one\ntwo\n", "")
    assert run(ctrport, "sh", "-c", "read line || echo nothing", input="one\n") == (0, "nothing\n", "")


def test_signals_are_passed_once(ctrport: Cli):
    """TERM, INT, HUP, QUIT and USR2 sent to ctrport reach the container, each exactly once."""
    name = ctrport.containerd.unique("fg")
    arguments = ("run", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", TRAPS)
    process = ctrport.popen(*arguments, stdout=subprocess.PIPE)
    assert lines_of(process, 1) == ["ready"]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2):
        process.send_signal(number)
        assert lines_of(process, 1) == [number.name.removeprefix("SIG")]
    time.sleep(0.3)  # in which a second one would come
    process.send_signal(signal.SIGUSR1)
    rest, _ = process.communicate(timeout=15)
    assert (rest, process.returncode) == (b"", 7)


def test_ctrl_c_without_tty_option(ctrport: Cli, terminals: list[Terminal]):
    """Ctrl-C on the terminal reaches a container without a terminal of its own exactly once."""
    name = ctrport.containerd.unique("fg")
    terminal = Terminal(ctrport, "run", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", TRAPS)
    terminals.append(terminal)
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("INT")
    time.sleep(0.3)
    terminal.process.send_signal(signal.SIGUSR1)
    assert terminal.wait() == 7
    assert terminal.said.count("INT") == 1


def test_a_terminal(ctrport: Cli, terminals: list[Terminal]):
    """With -it the program has a terminal: it echoes, Ctrl-C comes once, its size is ours, the exit code passes."""
    name = ctrport.containerd.unique("fg")
    image = ctrport.containerd.image
    script = 'trap "echo INT" INT; tty; stty size; read line; echo "got $line"; sleep 0.5; exit 9'
    terminal = Terminal(ctrport, "run", "-it", "--rm", "--name", name, image, "sh", "-c", script)
    terminals.append(terminal)
    terminal.resize(101, 40)
    terminal.expect("/dev/pts/")
    terminal.expect("40 101")
    terminal.type("hello\r")
    terminal.expect("got hello")
    terminal.type("\x03")
    assert terminal.wait() == 9
    said = terminal.said.replace("\r\n", "\n").splitlines()
    assert said == ["/dev/pts/0", "40 101", "hello", "got hello", "^CINT"]


def test_a_signal_with_a_terminal(ctrport: Cli, terminals: list[Terminal]):
    """With -it too, a signal sent to ctrport reaches the container: ctr itself would end and leave it behind."""
    name = ctrport.containerd.unique("fg")
    terminal = Terminal(ctrport, "run", "-it", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", TRAPS)
    terminals.append(terminal)
    terminal.expect("ready")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.expect("TERM")
    terminal.process.send_signal(signal.SIGUSR1)
    assert terminal.wait() == 7


@pytest.mark.parametrize("whom", ["process", "group"])
def test_ctrl_c_before_the_container_runs(program: Cli, whom: str):
    """Ctrl-C at any moment of a run leaves a container that runs, or nothing at all."""
    program("run", "--rm", "--name", program.containerd.unique("fg"), program.containerd.image, "true", check=True)
    before = program.everything()
    for step in range(8):
        name = program.containerd.unique("fg")
        process = program.popen(
            *("run", "-d", "--name", name, "-p", "8080:80", program.containerd.image),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.15 + 0.07 * step)
        if process.poll() is None:
            (os.kill if whom == "process" else os.killpg)(process.pid, signal.SIGINT)
        output, said = process.communicate(timeout=20)
        # The interpreter itself, before our code and after it, dies of the signal, with a traceback if it is slow.
        assert "Traceback" not in said or ", in program" not in said, said
        assert process.returncode in (0, 130, -signal.SIGINT), said
        if output or process.returncode == 0:
            assert output == f"{name}\n"
            program("rm", "-f", name, check=True)
        assert program.everything() == before, (step, process.returncode, said)


@pytest.fixture
def slow(program: Cli, tmp_path: Path) -> dict[str, str]:
    """Give an environment whose ctr is slow to make a container: its network is there long before."""
    path = program.environment["PATH"]
    script = tmp_path / "ctr"
    script.write_text(
        f'#!/bin/sh\ncase " $* " in *" containers create "*) sleep 1;; esac\n'
        f'exec {shutil.which("ctr", path=path)} "$@"\n'
    )
    script.chmod(0o755)
    return {"PATH": f"{tmp_path}:{path}"}


def test_a_container_whose_port_is_refused_while_it_is_made(program: Cli, slow: dict[str, str]):
    """The end of ctr is waited for, and what it made is removed again; the error is about the port."""
    image = program.containerd.image
    with program.container("-p", "8080:80") as holder:
        before = program.everything()
        name = program.containerd.unique("late")
        result = program("run", "-d", "--name", name, "-p", "8080:80", image, env=slow)
        assert (result.returncode, result.stdout) == (125, "")
        assert f"8080/tcp is held by container default/{holder}" in result.stderr
        assert program.everything() == before


def test_ctrl_c_twice_while_a_container_is_made(program: Cli, slow: dict[str, str]):
    """The second one changes nothing: ctr is waited for, and what it made is removed."""
    with program.container("-p", "8080:80"):  # what stays for the next: a bridge, rules
        pass
    before = program.everything()
    name = program.containerd.unique("late")
    process = program.popen(
        *("run", "-d", "--name", name, "-p", "8080:80", program.containerd.image),
        env=slow,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until((program.root / "containers" / "default" / name).exists, within=20, what="the name, reserved")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.1)
    output, said = process.communicate(timeout=30)
    assert (process.returncode, output) == (128 + signal.SIGINT, ""), said
    assert "Traceback" not in said
    assert program.everything() == before


def test_a_failed_run_while_containerd_dies(program: Cli, tmp_path: Path):
    """What could not be taken back is told, and `rm` takes away all of it when containerd is there again."""
    containerd = program.containerd
    with program.container("-p", "8080:80"):
        before = program.everything()
        path = program.environment["PATH"]
        real = shutil.which("ctr", path=path)
        (tmp_path / "ctr").write_text(f'#!/bin/sh\n{real} "$@" && kill -9 {containerd.pid}\n')
        (tmp_path / "ctr").chmod(0o755)
        name = containerd.unique("late")
        words = ("run", "-d", "--name", name, "-p", "8080:80", containerd.image)
        result = program(*words, env={"PATH": f"{tmp_path}:{path}"})
        containerd.restart()
        assert result.returncode == 125
        assert f"could not take back default/{name}" in result.stderr
        program("rm", name, check=True)
        assert program.everything() == before


@pytest.mark.parametrize("port", [8080, 8081], ids=["port taken", "port free"])
def test_a_name_that_somebody_takes_while_a_container_is_made(program: Cli, slow: dict[str, str], port: int):
    """Another's container of the same name is left alone, whatever else has gone wrong."""
    image = program.containerd.image
    with program.container("-p", "8080:80"):
        name = program.containerd.unique("late")
        process = program.popen(
            *("run", "-d", "--name", name, "-p", f"{port}:80", image),
            env=slow,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until((program.root / "containers" / "default" / name).exists, within=20, what="the name, reserved")
        program.containerd.ctr("containers", "create", image, name)
        output, said = process.communicate(timeout=30)
        assert (process.returncode, output, "Traceback" in said) == (125, "", False), said
        assert ("8080/tcp is held by" if port == 8080 else "already exists") in said
        assert f"default: container {name}" in program.everything()["containers"]
        program("rm", name, check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_while_pulling(ctrport: Cli, number: int):
    """A pull that hangs is ended by Ctrl-C or SIGTERM at once, and nothing is left of it."""
    lab = ctrport.containerd.lab
    before = ctrport.everything()
    script = "import socket, time; s = socket.create_server(('192.0.2.2', 5000)); print(flush=True); time.sleep(60)"
    registry = lab.remote.popen("python3", "-c", script, stdout=subprocess.PIPE)
    assert registry.stdout is not None
    registry.stdout.readline()
    name = ctrport.containerd.unique("fg")
    process = ctrport.popen(
        *("run", "-d", "--name", name, "-p", "8080:80", "192.0.2.2:5000/some/image:1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: ":5000" in lab.host.run("ss", "-Htn", "dport", "=", ":5000").stdout, within=10, what="the pull")
    process.send_signal(number)
    output, said = process.communicate(timeout=10)
    registry.kill()
    registry.wait(5)
    assert (process.returncode in (130, 128 + number), output, "Traceback" in said) == (True, "", False), said
    assert ctrport.everything() == before
