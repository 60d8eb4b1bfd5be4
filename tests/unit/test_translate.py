"""What is put into an OCI spec where ctr has no option for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ctrport.errors import InputError
from ctrport.run.options import Options
from ctrport.run.translate import patched_spec

SPEC: dict[str, Any] = {
    "process": {"args": ["/entry", "serve"], "user": {"uid": 5, "gid": 5}, "cwd": "/"},
    "hostname": "old",
    "mounts": [],
}


def patched(options: Options, **given: Any) -> dict[str, Any]:
    """Give the patched spec; the one that went in must be as it was."""
    spec = copy.deepcopy(SPEC)
    nothing = {"hostname": None, "user": None, "image_entrypoint": ["/entry"], "size": None}
    found = patched_spec(spec, options, **{**nothing, **given})
    assert spec == SPEC
    return found


def changed(**process: object) -> dict[str, Any]:
    return {**SPEC, "process": {**SPEC["process"], **process}}


def test_nothing_asked_for_is_nothing_changed():
    """What ctr has put there stays."""
    assert patched(Options(image="x")) == SPEC


def test_a_command_follows_the_entry_point_of_the_image():
    """As in Docker; ctr would replace both by the command."""
    assert patched(Options(image="x", command=("check", "-v"))) == changed(args=["/entry", "check", "-v"])


def test_an_entry_point():
    """It replaces the image's, and the command follows; an empty one leaves the command alone."""
    asked = Options(image="x", entrypoint="/bin/sh", command=("-c", "id"))
    assert patched(asked) == changed(args=["/bin/sh", "-c", "id"])
    assert patched(Options(image="x", entrypoint="", command=("id",))) == changed(args=["id"])
    with pytest.raises(InputError, match="there is no command to run"):
        patched(Options(image="x", entrypoint=""))


def test_a_user():
    """The numbers replace the image's, groups of the old user included."""
    assert patched(Options(image="x"), user={"uid": 1, "gid": 2}) == changed(user={"uid": 1, "gid": 2})


def test_a_host_name():
    """A name that is given replaces the old one."""
    assert patched(Options(image="x"), hostname="web") == {**SPEC, "hostname": "web"}


def test_the_size_of_the_terminal():
    """The program finds it at its first look."""
    assert patched(Options(image="x"), size=(101, 40)) == changed(consoleSize={"width": 101, "height": 40})


def test_a_spec_without_a_process():
    """What is missing is made."""
    found = patched_spec(
        {}, Options(image="x", entrypoint="id"), hostname="h", user=None, image_entrypoint=(), size=None
    )
    assert found == {"process": {"args": ["id"]}, "hostname": "h"}
