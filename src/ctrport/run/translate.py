"""Docker's words to ctr's: the ctr command that makes a container, and what ctr has no word for.

`ctr run` is `ctr containers create` and `ctr tasks start` in one process. We run the first and do the second
ourselves: between them the container's record exists and its task does not, so the OCI spec can be given what
ctr 1.6 has no option for (entry point, user, host name), and a failure can be undone before any of the image's code
has run.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from ctrport.errors import InputError
from ctrport.model.listing import join
from ctrport.model.words import AUTO_REMOVE, NETWORK, PUBLISH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ctrport.config import Settings
    from ctrport.run.options import Options

CPU_PERIOD = 100_000  # microseconds, the kernel's default for cgroup CPU quotas
# containerd's restart monitor (runtime/restart); `status` alone means always.
RESTART_STATUS = "containerd.io/restart.status"
RESTART_POLICY = "containerd.io/restart.policy"
RESTART_LOG = "containerd.io/restart.loguri"
RESTART_STOPPED = "containerd.io/restart.explicitly-stopped"


def ctr(settings: Settings, *words: str) -> list[str]:
    """Give a ctr command for the containerd and namespace in use."""
    return ["ctr", "--address", settings.address, "--namespace", settings.namespace, *words]


def create(
    settings: Settings,
    options: Options,
    *,
    name: str,
    image: str,
    netns: str | None,
    files: Iterable[tuple[Path, str]],
) -> list[str]:
    """Give the command that makes the container's record and snapshot."""
    words: list[str] = []
    if options.network == "host":
        words.append("--net-host")
    if netns is not None:
        words += ["--with-ns", f"network:{netns}"]
    for source, target in files:
        words += ["--mount", f"type=bind,src={source},dst={target},options=rbind:rw"]
    for entry in options.mounts:
        words += ["--mount", entry]
    for entry in options.env:
        words += ["--env", entry]
    for entry in options.labels:
        words += ["--label", entry]
    for entry in (*options.annotations, *_annotations(options)):
        words += ["--annotation", entry]
    words += _limits(options)
    # ctr takes options after its arguments too, but for what follows `--`; and it takes `--` for a value after
    # an option without `=` (urfave/cli 1.22, reorderArgs).
    end = (f"--tty={str(options.tty).lower()}", "--")
    return ctr(settings, "containers", "create", *words, *options.ctr_args, *end, image, name, *options.command)


def start(settings: Settings, *, detach: bool, name: str, log: Path | None) -> list[str]:
    """Give the command that starts the task, attached or not, as we do ourselves (see `task`)."""
    words = ["--detach"] * detach + (["--log-uri", f"file://{log}"] if log is not None else [])
    return ctr(settings, "tasks", "start", *words, name)


def labels(options: Options) -> dict[str, str]:
    """Give the labels that the container will have, by which the policy may judge."""
    return dict(label.partition("=")[::2] for label in options.labels)


def restart(settings: Settings, options: Options, *, name: str, log: Path | None) -> list[str] | None:
    """Give the command that hands a container to containerd's restart monitor, None without a policy.

    It comes last: the monitor starts what has these labels and no task, and would be faster than we are.
    """
    if options.restart == "no":
        return None
    labels = [f"{RESTART_STATUS}=running", f"{RESTART_POLICY}={options.restart}"]
    if log is not None:
        labels.append(f"{RESTART_LOG}=file://{log}")
    return ctr(settings, "containers", "label", name, *labels)


def patched_spec(
    spec: dict[str, Any],
    options: Options,
    *,
    hostname: str | None,
    user: dict[str, int] | None,
    image_entrypoint: Sequence[str],
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Give an OCI spec with what ctr has no option for; `size` is the terminal's, columns and lines."""
    process = dict(spec.get("process", {}))
    entrypoint = image_entrypoint if options.entrypoint is None else [options.entrypoint] * bool(options.entrypoint)
    if options.entrypoint is not None or options.command:  # ctr replaces the entry point by the command
        process["args"] = [*entrypoint, *options.command]
    if not process.get("args"):
        raise InputError("there is no command to run", hint="give one after the image")
    if user is not None:
        process["user"] = user
    if size is not None:  # else the program sees none until it is told, a moment after its start
        process["consoleSize"] = {"width": size[0], "height": size[1]}
    return {**spec, "process": process} | ({} if hostname is None else {"hostname": hostname})


def pasteable(words: Sequence[str]) -> str:
    """Give a command as it could be typed into a shell."""
    return shlex.join(words)


def _limits(options: Options) -> list[str]:
    """Give what a container may do and use."""
    words: list[str] = []
    for capability in options.cap_add:
        upper = capability.upper()
        words += ["--cap-add", upper if upper.startswith("CAP_") else f"CAP_{upper}"]
    if options.cpus is not None:
        words += ["--cpu-period", str(CPU_PERIOD), "--cpu-quota", str(round(options.cpus * CPU_PERIOD))]
    if options.memory is not None:
        words += ["--memory-limit", str(options.memory)]
    if options.workdir is not None:
        words += ["--cwd", options.workdir]
    switches = {
        "--privileged": options.privileged,
        "--read-only": options.read_only,
        "--rootfs": options.rootfs,
    }
    return [*words, *(switch for switch, wanted in switches.items() if wanted)]


def _annotations(options: Options) -> list[str]:
    found = []
    if options.publish and options.bridged:
        found.append(f"{PUBLISH}={join(options.publish)}")
    if options.bridged:
        found.append(f"{NETWORK}={options.network}")
    if options.remove and options.detach:
        found.append(f"{AUTO_REMOVE}=true")
    return found
