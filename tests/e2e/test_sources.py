"""Where a container's wish for ports can stand: each from its task's start to an answered request.

With nothing called in between. Pods, whose wish is an annotation of theirs, are in test_pods.py.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

import plain
from images import web_image
from lab import REFUSED, http_get, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lab import Lab
    from program import Cli, Watcher

HOST = "192.0.2.1"
PAGE = "It works!\n"
ASKING = "docker.io/library/asking:latest"
ANNOTATION = ("--annotation", "ctrport.io/publish=8080:80")


@pytest.fixture
def ctrport(ctrport: Cli) -> Cli:
    """Give the program with labels trusted."""
    ctrport.config.write_text("[policy]\ntrust_labels = true\n")
    return ctrport


def annotation_with_ns(ctrport: Cli, lab: Lab) -> str:
    return plain.with_ns(ctrport, lab, *ANNOTATION)


def annotation_with_cni(ctrport: Cli, lab: Lab) -> str:
    return plain.with_cni(ctrport, lab, *ANNOTATION)


def extension(ctrport: Cli, lab: Lab) -> str:
    """Make a container, publish its port, and only then start it."""
    name = ctrport.containerd.unique("plain")
    ctrport.containerd.ctr("containers", "create", *plain.joining(lab), ctrport.containerd.image, name)
    assert "its ports are published when it starts" in ctrport("publish", name, "8080:80", check=True).stderr
    assert http_get(lab.remote, HOST, 8080) is REFUSED
    ctrport.containerd.ctr("tasks", "start", "-d", name)
    return name


def label_of_the_image(ctrport: Cli, lab: Lab) -> str:
    return plain.with_ns(ctrport, lab, image=ASKING)


@pytest.fixture
def asking_image(ctrport: Cli, tmp_path: Path) -> None:
    """Bring in an image whose label asks for a port."""
    archive = web_image(tmp_path / "image.tar", ASKING, labels={"ctrport.io/publish": "8080:80"})
    ctrport.containerd.import_image(archive)


@pytest.mark.usefixtures("asking_image")
@pytest.mark.parametrize("start", [annotation_with_ns, annotation_with_cni, extension, label_of_the_image])
def test_from_the_start_to_the_answer(ctrport: Cli, watcher: Watcher, lab: Lab, start: Callable[[Cli, Lab], str]):
    """A remote peer is answered once the task has started, and refused once it has ended."""
    name = start(ctrport, lab)
    until(lambda: http_get(lab.remote, HOST, 8080) == PAGE, within=15, what="the page")
    # Not by `ctr tasks kill`, which since 1.7 asks the CNI plugins first: they are not where it looks.
    os.kill(plain.task_pid(ctrport, name), signal.SIGKILL)
    until(lambda: http_get(lab.remote, HOST, 8080) is REFUSED, within=15, what="the refusal")
    assert watcher.running
    ctrport("rm", "-f", name, check=True)
