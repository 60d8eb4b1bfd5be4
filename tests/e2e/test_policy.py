"""Who may publish what, on real containers: refused with a reason, allowed on SIGHUP, and who holds a port."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from lab import REFUSED, Failure, http_get, until
from plain import with_ns

if TYPE_CHECKING:
    from lab import Lab
    from program import Cli, Watcher

PAGE = "It works!\n"
HOST = "192.0.2.1"
ONLY_8081 = '[[policy.allow]]\ncontainerd_namespaces = ["default"]\nhost_ports = [8081]\n'
REASON = (
    'policy: containerd namespace "default" may not publish on host port 8080; allowed: 8081; to allow it, '
    'in config.toml: [[policy.allow]] containerd_namespaces = ["default"], host_ports = [8080]'
)


def page(lab: Lab, port: int) -> str | Failure:
    return http_get(lab.remote, HOST, port)


def answers(lab: Lab, *ports: int) -> None:
    for port in ports:
        until(lambda port=port: page(lab, port) == PAGE, what=f"the page at {port}")


def asking(specs: str) -> tuple[str, str]:
    return "--annotation", f"ctrport.io/publish={specs}"


def states(ctrport: Cli, name: str) -> list[tuple[int | None, str, str]]:
    return [(m["host_port"], m["state"], m["reason"]) for m in ctrport.entry(name)["mappings"]]


def configure(ctrport: Cli, watcher: Watcher, text: str, said: str = "read the configuration again") -> None:
    """Write config.toml and have it read: as `systemctl reload ctrport`."""
    before = len(watcher.log)
    ctrport.config.write_text(text)
    watcher.signal(signal.SIGHUP)
    until(lambda: said in watcher.log[before:], what=f"{said!r} in the log")
    ctrport("sync", check=True)


def test_refused_then_allowed_on_sighup(ctrport: Cli, watcher: Watcher, lab: Lab):
    """What the policy forbids is refused with its reason in ps and once in the log, and mapped once allowed."""
    configure(ctrport, watcher, ONLY_8081)
    name = with_ns(ctrport, lab, *asking("8080:80, 8081:80"))
    answers(lab, 8081)
    assert page(lab, 8080) is REFUSED
    assert states(ctrport, name) == [(8080, "refused", REASON), (8081, "active", "")]
    assert f"8080->80/tcp: refused, {REASON}" in ctrport("ps").stdout
    ctrport("sync", check=True)
    assert watcher.log.count(f"refused default/{name}: 8080:80/tcp: {REASON}") == 1
    watcher.restart()
    assert states(ctrport, name) == [(8080, "refused", REASON), (8081, "active", "")]
    configure(ctrport, watcher, ONLY_8081.replace("[8081]", '["8080-8081"]'))
    assert (page(lab, 8080), page(lab, 8081)) == (PAGE, PAGE)
    configure(ctrport, watcher, ONLY_8081.replace("[8081]", "[]"))
    assert (page(lab, 8080), page(lab, 8081)) == (REFUSED, REFUSED)
    assert [state for _, state, _ in states(ctrport, name)] == ["refused", "refused"]
    configure(ctrport, watcher, "")
    assert (page(lab, 8080), page(lab, 8081)) == (PAGE, PAGE)
    ctrport("rm", "-f", name, check=True)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "alone"])
def test_a_run_that_is_refused(ctrport: Cli, request: pytest.FixtureRequest, *, watched: bool):
    """Exit code 125 with the reason, and nothing is left; what a label allows is run with that label."""
    if watched:
        configure(ctrport, request.getfixturevalue("watcher"), ONLY_8081)
    else:
        ctrport.config.write_text(ONLY_8081)
    with ctrport.container("-p", "8081:80"):
        pass  # and so the network is there
    before = ctrport.everything()
    run = ("run", "-d", "-p", "8080:80")
    for options in (run, (*run, "--dry-run")):
        result = ctrport(*options, ctrport.containerd.image)
        assert (result.returncode, result.stdout) == (125, "")
        assert f"ctrport: 8080:80/tcp: {REASON}\n" in result.stderr
    assert ctrport.everything() == before
    labelled = ONLY_8081 + ONLY_8081.replace("[8081]", '[8080]\nlabels = { tier = "edge" }')
    if watched:
        configure(ctrport, request.getfixturevalue("watcher"), labelled)
    else:
        ctrport.config.write_text(labelled)
    assert ctrport(*run, ctrport.containerd.image).returncode == 125
    assert ctrport(*run, "--dry-run", "--label", "tier=edge", ctrport.containerd.image).returncode == 0
    with ctrport.container("-p", "8080:80", "--label", "tier=edge") as name:
        assert states(ctrport, name) == [(8080, "active", "")]


def test_a_bad_reload_keeps_the_old(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A file that is wrong changes nothing: log, ps, config show and config check say where it is wrong."""
    configure(ctrport, watcher, ONLY_8081)
    name = with_ns(ctrport, lab, *asking("8080:80, 8081:80"))
    answers(lab, 8081)
    before = states(ctrport, name)
    fault = f"{ctrport.config}: line 4: policy.allow[0].host_port: unknown key 'host_port'"
    bad = "resync_seconds = 5\n" + ONLY_8081.replace("host_ports = [8081]", "host_port = [8080]")
    configure_badly(ctrport, watcher, bad, f"the configuration stays as it was: {fault}")
    assert (page(lab, 8080), page(lab, 8081), states(ctrport, name)) == (REFUSED, PAGE, before)
    warning = f"ctrport: warning: the watcher keeps the configuration that it had: {fault}\n"
    assert ctrport("ps").stderr == warning
    shown = ctrport("config", "show", check=True)
    assert shown.stderr == warning
    assert "resync_seconds = 60.0\n" in shown.stdout
    assert "host_ports = [8081]\n" in shown.stdout
    assert ctrport.json("config", "show")["error"] == fault
    checked = ctrport("config", "check")
    assert (checked.returncode, checked.stdout) == (2, "")
    assert f"ctrport: {fault}\n" in checked.stderr
    ctrport.config.unlink()  # which would allow everything
    before_log = len(watcher.log)
    watcher.signal(signal.SIGHUP)
    until(lambda: "stays as it was: no configuration file" in watcher.log[before_log:], what="the log")
    assert states(ctrport, name) == before
    configure(ctrport, watcher, ONLY_8081.replace("8081", "8080"))
    assert (page(lab, 8080), page(lab, 8081)) == (PAGE, REFUSED)
    assert ctrport("ps").stderr == ""
    assert ctrport("config", "show").stderr == ""
    ctrport("rm", "-f", name, check=True)


def configure_badly(ctrport: Cli, watcher: Watcher, text: str, said: str) -> None:
    before = len(watcher.log)
    ctrport.config.write_text(text)
    watcher.signal(signal.SIGHUP)
    until(lambda: said in watcher.log[before:], what=f"{said!r} in the log")


def test_a_bad_file_at_the_start(ctrport: Cli):
    """The watcher does not start and touches nothing: exit 2 with file, line and key; other commands likewise."""
    before = ctrport.everything()
    ctrport.config.write_text('[policy]\ntrust_labels = "no"\n')
    for command in (("watch",), ("ps",), ("sync",), ("config", "show"), ("config", "check"), ("run", "x")):
        result = ctrport(*command, timeout=20)
        assert (result.returncode, result.stdout) == (2, "")
        said = f"ctrport: {ctrport.config}: line 2: policy.trust_labels: 'no' is neither true nor false\n"
        assert result.stderr == said
    assert ctrport.everything() == before


def test_a_restart_is_asked_for_where_it_is_needed(ctrport: Cli, watcher: Watcher):
    """What a running watcher cannot change stays, and is said; the rest of the same file is in force."""
    assert ctrport("config", "show").stderr == ""
    ctrport.config.write_text("mark = 0x40\nresync_seconds = 50\n")
    not_read = f"{ctrport.config} says something else, which the watcher has not read: systemctl reload ctrport"
    assert not_read in ctrport("config", "show").stderr
    configure(ctrport, watcher, "mark = 0x40\nresync_seconds = 50\n", "a change of mark waits for a restart")
    shown = ctrport("config", "show", check=True)
    assert shown.stdout.startswith(f"# {ctrport.config} and defaults, in force in the watcher\nmark = 0x10000\n")
    assert "resync_seconds = 50.0\n" in shown.stdout
    assert "a change of mark waits for a restart: systemctl restart ctrport" in shown.stderr
    watcher.restart()
    shown = ctrport("config", "show", check=True)
    assert (shown.stdout.splitlines()[1], shown.stderr) == ("mark = 0x40", "")


def test_the_time_between_full_passes_changes_at_once(ctrport: Cli, watcher: Watcher, lab: Lab):
    """With another resync_seconds a deleted element is back that soon, though an hour was to pass."""
    configure(ctrport, watcher, "resync_seconds = 3600\n")
    with ctrport.container("-p", "8080:80"):
        answers(lab, 8080)
        configure(ctrport, watcher, "resync_seconds = 0.3\n")
        lab.host.nft("delete element inet ctrport published4 { tcp . 8080 }")
        answers(lab, 8080)


def test_a_label_that_asks(ctrport: Cli, watcher: Watcher, lab: Lab):
    """A label publishes nothing until the policy trusts labels, and nothing any more when it does not."""
    name = with_ns(ctrport, lab)
    # Not with `ctr run --label`, which writes an annotation too.
    ctrport.containerd.ctr("containers", "label", name, "ctrport.io/publish=8080:80")
    ctrport("sync", check=True)
    assert (states(ctrport, name), page(lab, 8080)) == ([], REFUSED)
    configure(ctrport, watcher, "[policy]\ntrust_labels = true\n")
    assert (states(ctrport, name), page(lab, 8080)) == ([(8080, "active", "")], PAGE)
    configure(ctrport, watcher, "[policy]\ntrust_labels = false\n")
    assert (states(ctrport, name), page(lab, 8080)) == ([], REFUSED)
    ctrport("rm", "-f", name, check=True)


def test_the_order_of_creation_outlives_the_watcher(ctrport: Cli, watcher: Watcher, lab: Lab):
    """The port goes from the oldest to the next, also when its holder ended while no watcher ran."""
    first, second, third = (with_ns(ctrport, lab, *asking("8080:80"), number=number) for number in (2, 3, 4))

    def held_by(holder: str, waiting: tuple[str, ...]) -> None:
        until(lambda: states(ctrport, holder) == [(8080, "active", "")], what=f"the port for {holder}")
        reason = f"8080/tcp is held by container default/{holder}"
        assert [states(ctrport, name) for name in waiting] == [[(8080, "waiting", reason)] for _ in waiting]
        shown = ctrport("ps").stdout
        assert shown.count(f"8080->80/tcp: waiting, {reason}") == len(waiting)
        assert page(lab, 8080) == PAGE

    held_by(first, (second, third))
    watcher.restart()
    held_by(first, (second, third))
    watcher.kill()
    ctrport.containerd.ctr("tasks", "kill", "-s", "KILL", first)
    until(lambda: f"{first} " in stopped(ctrport), what="the end of the holder")
    watcher.start()
    held_by(second, (third,))
    # The oldest comes back, and with it the port that is its own.
    ctrport.containerd.ctr("tasks", "delete", first)
    ctrport.containerd.ctr("tasks", "start", "-d", first)
    held_by(first, (second, third))
    ctrport("rm", "-f", first, second, check=True)
    held_by(third, ())
    ctrport("rm", "-f", third, check=True)


def stopped(ctrport: Cli) -> str:
    return "\n".join(line for line in ctrport.containerd.ctr("tasks", "list").splitlines() if "STOPPED" in line)
