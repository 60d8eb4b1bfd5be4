"""What a container in the foreground writes and reads arrives whole, whoever is slow, gone or restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from lab import http_get, until
from terminal import Terminal

if TYPE_CHECKING:
    from program import Cli

# A script that goes on after SIGUSR1.
UNTIL_TOLD = "trap 'told=yes' USR1; echo ready; while [ -z \"$told\" ]; do sleep 0.05; done"


def start(ctrport: Cli, *command: str, options: tuple[str, ...] = (), **other: Any) -> tuple[str, Any]:
    """Begin to run a command in a container; give its name and the process."""
    name = ctrport.containerd.unique("io")
    arguments = ("run", "--rm", *options, "--name", name, ctrport.containerd.image, *command)
    return name, ctrport.popen(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **other)


def status(ctrport: Cli, name: str) -> str:
    """Give what containerd says of a task."""
    lines = ctrport.containerd.ctr("tasks", "list").splitlines()
    return next((line.split()[2] for line in lines if line.startswith(f"{name} ")), "")


def numbers(last: int) -> bytes:
    """Give what `seq 1 LAST` writes."""
    return "".join(f"{n}\n" for n in range(1, last + 1)).encode()


def test_much_output(ctrport: Cli):
    """Output larger than any buffer on the way arrives whole on both streams."""
    _, process = start(ctrport, "sh", "-c", "seq 1 60000; seq 1 60000 >&2")
    said = process.communicate(timeout=60)
    expected = numbers(60000)
    assert (process.returncode, [len(each) for each in said]) == (0, [len(expected)] * 2)
    assert said == (expected, expected)


def test_output_that_is_read_late(ctrport: Cli):
    """What the container wrote before its end is not lost when nobody has read it by then, as it is with ctr."""
    name, process = start(ctrport, "seq", "1", "25000")
    until(lambda: status(ctrport, name) == "STOPPED", within=20, what="the container's end")
    time.sleep(0.5)  # in which a reader that closes at the end would have closed
    assert process.poll() is None
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, errors, len(said)) == (0, b"", len(numbers(25000)))
    assert said == numbers(25000)


def test_much_input(ctrport: Cli):
    """Input larger than any buffer on the way arrives whole, and its end too."""
    _, process = start(ctrport, "md5sum", options=("-i",), stdin=subprocess.PIPE)
    said, errors = process.communicate(numbers(60000), timeout=60)
    expected = subprocess.run(["md5sum"], input=numbers(60000), capture_output=True, check=True).stdout
    assert (process.returncode, said, errors) == (0, expected, b"")


def test_a_reader_that_goes_away(ctrport: Cli):
    """`ctrport run ... | head -1` ends as other programs do, and --rm leaves nothing of the container."""
    start(ctrport, "true")[1].communicate(timeout=20)  # what stays for the next: a bridge, rules
    before = ctrport.everything()
    _, process = start(ctrport, "sh", "-c", "while :; do echo line; done")
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()
    assert ctrport.everything() == before


def test_a_run_that_is_killed(ctrport: Cli):
    """A container that writes to nobody, as its run was killed, can be removed; its shim waits for a reader."""
    name, process = start(ctrport, "sh", "-c", "while :; do echo line; done")
    assert process.stdout.readline() == b"line\n"
    ctrport("sync", check=True)  # waits until the run only attends
    process.kill()
    process.communicate(timeout=20)
    time.sleep(0.5)  # for the pipes to be full
    ctrport("rm", "-f", name, check=True)
    assert status(ctrport, name) == ""


def test_a_failure_to_clean_up(ctrport: Cli):
    """What goes wrong after the container's end is told, and does not replace its exit code."""
    start(ctrport, "true")[1].communicate(timeout=20)  # what stays for the next: a bridge, rules
    before = ctrport.everything()
    _, process = start(ctrport, "sh", "-c", f"{UNTIL_TOLD}; exit 5")
    assert process.stdout.readline() == b"ready\n"
    ctrport("sync", check=True)  # waits for the lock, which the run has until it only attends
    ctrport.state.chmod(0o777)  # and so nobody trusts what is in it
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=30)
    ctrport.state.chmod(0o700)
    assert process.returncode == 5
    assert b"warning: could not clean up after default/" in errors
    ctrport("sync", check=True)
    assert ctrport.everything() == before


def test_containerd_restarts_meanwhile(ctrport: Cli):
    """A container in the foreground goes on without containerd; its output and exit code arrive all the same."""
    _, process = start(ctrport, "sh", "-c", f"{UNTIL_TOLD}; echo two; exit 5")
    assert process.stdout.readline() == b"ready\n"
    ctrport("sync", check=True)  # waits for the lock, which the run has until it only attends
    ctrport.containerd.restart()
    process.send_signal(signal.SIGUSR1)
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, said, errors) == (5, b"two\n", b"")


def test_a_disk_that_is_full(ctrport: Cli):
    """Output that cannot be written is lost with a warning; the container goes on, and has its own exit code."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - not a file
        name = ctrport.containerd.unique("io")
        command = ("run", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", "seq 1 60000; exit 4")
        process = ctrport.popen(*command, stdout=full, stderr=subprocess.PIPE, text=True)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.count("lost from here on: No space left on device")) == (4, 1), said


def test_a_reader_that_goes_away_from_what_stays(ctrport: Cli):
    """Without --rm the container is left, waiting for somebody to read; who removes it does."""
    name = ctrport.containerd.unique("io")
    script = 'trap "exit 3" TERM; while :; do echo line; done'
    command = ("run", "--name", name, ctrport.containerd.image, "sh", "-c", script)
    process = ctrport.popen(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE
    time.sleep(0.5)  # for the pipes to be full
    assert status(ctrport, name) == "RUNNING"
    ctrport("rm", "-f", name, check=True)
    assert status(ctrport, name) == ""


def test_input_that_does_not_wait(ctrport: Cli):
    """A standard input that says "nothing yet" has not ended; nor is it changed, as others share it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    _, process = start(ctrport, "cat", options=("-i",), stdin=reading)
    time.sleep(2)
    assert process.poll() is None
    assert os.get_blocking(reading) is False
    os.close(reading)
    os.write(writing, b"late")
    os.close(writing)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said, errors) == (0, b"late", b"")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_stream(ctrport: Cli, closed: int):
    """Without a standard stream, as `2>&-` has it, the container runs with its other streams and its exit code."""
    script = "echo one; echo two >&2; exit 7"
    arguments = ctrport.argv("run", "--rm", "-i", ctrport.containerd.image, "sh", "-c", script)
    words = ("sh", "-c", f'exec "$@" {closed}>&-', "sh", *arguments)
    result = ctrport.containerd.lab.host.run(*words, check=False, env=ctrport.environment, timeout=30)
    expected = ["one\n" if closed != 1 else "", "two\n" if closed != 2 else ""]
    assert (result.returncode, [result.stdout, result.stderr]) == (7, expected)


def test_a_terminal_that_is_closed(ctrport: Cli):
    """A terminal that goes away takes a --rm container with it, which gets the hangup; nothing of it is left."""
    start(ctrport, "true")[1].communicate(timeout=20)  # what stays for the next: a bridge, rules
    before = ctrport.everything()
    script = 'trap "exit 3" HUP; echo ready; while :; do sleep 0.05; done'
    name = ctrport.containerd.unique("io")
    terminal = Terminal(ctrport, "run", "-it", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", script)
    terminal.expect("ready")
    terminal.close()
    assert terminal.process.wait(20) == 3
    assert ctrport.everything() == before


def test_a_terminal_for_output_alone(ctrport: Cli):
    """With -t and without -i the program has a terminal, and Ctrl-C reaches it as the signal that it is."""
    script = 'trap "echo INT; exit 6" INT; tty; while :; do sleep 0.05; done'
    _, process = start(ctrport, "sh", "-c", script, options=("-t",), stdin=subprocess.DEVNULL)
    assert process.stdout.readline() == b"/dev/pts/0\r\n"
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said, errors) == (6, b"INT\r\n", b"")


def test_a_terminal_without_one(ctrport: Cli):
    """-i -t is refused where standard input is no terminal, as Docker does."""
    before = ctrport.everything()
    _, process = start(ctrport, "true", options=("-i", "-t"), stdin=subprocess.DEVNULL)
    said, errors = process.communicate(timeout=20)
    assert (process.returncode, said) == (2, b"")
    assert b"standard input is not a terminal" in errors
    assert ctrport.everything() == before


def test_a_terminal_changes_its_size(ctrport: Cli, terminals: list[Terminal]):
    """The program's terminal has the size of ours, also when that changes; ours is put back as it was."""
    script = f'trap "stty size" WINCH; {UNTIL_TOLD}'
    name = ctrport.containerd.unique("io")
    arguments = ("run", "-it", "--rm", "--name", name, ctrport.containerd.image, "sh", "-c", script)
    terminal = Terminal(ctrport, *arguments)
    terminals.append(terminal)
    modes = terminal.modes
    terminal.expect("ready")
    terminal.resize(101, 40)
    terminal.expect("40 101")
    terminal.resize(80, 24)
    terminal.expect("24 80")
    assert terminal.modes != modes
    terminal.process.send_signal(signal.SIGUSR1)
    assert terminal.wait() == 0
    assert terminal.modes == modes


def test_a_terminal_that_nobody_has(program: Cli):
    """With -d -t the program has a terminal that takes all it writes to nowhere; also when it is started again."""
    script = "tty > /www/index.html; seq 1 200000; exec httpd -f -p 80 -h /www"
    remote = program.containerd.lab.remote
    with program.container("-t", "-p", "8080:80", command=("sh", "-c", script)) as name:
        for _ in range(2):
            until(lambda: http_get(remote, "192.0.2.1", 8080) == "/dev/pts/0\n", what="the terminal's name")
            assert not (program.root / "containers" / "default" / name / "output.log").exists()
            program("stop", "-t", "0", name, check=True)
            program("start", name, check=True)
