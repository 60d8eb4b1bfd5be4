"""What is put into an OCI spec where ctr has no option for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from ctrport.errors import InputError
from ctrport.run.options import Options
from ctrport.run.translate import patch_spec

SPEC: dict[str, Any] = {
    "process": {"args": ["/entry", "serve"], "user": {"uid": 5, "gid": 5}, "cwd": "/"},
    "hostname": "old",
    "mounts": [],
}


def patched(
    options: Options, *, hostname: str | None = None, user: dict[str, int] | None = None
) -> tuple[bool, dict[str, Any]]:
    spec = copy.deepcopy(SPEC)
    return patch_spec(spec, options, hostname=hostname, user=user), spec


def changed(**process: object) -> dict[str, Any]:
    return {**SPEC, "process": {**SPEC["process"], **process}}


def test_nothing_asked_for_is_nothing_changed():
    """The command alone is ctr's to set."""
    assert patched(Options(image="x", command=("serve",))) == (False, SPEC)


def test_an_entry_point():
    """It replaces the image's, and the command follows; an empty one leaves the command alone."""
    assert patched(Options(image="x", entrypoint="/bin/sh", command=("-c", "id"))) == (
        True,
        changed(args=["/bin/sh", "-c", "id"]),
    )
    assert patched(Options(image="x", entrypoint="", command=("id",))) == (True, changed(args=["id"]))
    with pytest.raises(InputError, match="--entrypoint '' needs a COMMAND"):
        patched(Options(image="x", entrypoint=""))


def test_a_user():
    """The numbers replace the image's, groups of the old user included."""
    assert patched(Options(image="x"), user={"uid": 1, "gid": 2}) == (True, changed(user={"uid": 1, "gid": 2}))


def test_a_host_name():
    """Set unless it is so already."""
    assert patched(Options(image="x"), hostname="web") == (True, {**SPEC, "hostname": "web"})
    assert patched(Options(image="x"), hostname="old") == (False, SPEC)


def test_a_spec_without_a_process():
    """What is missing is made."""
    spec: dict[str, Any] = {}
    assert patch_spec(spec, Options(image="x", entrypoint="id"), hostname="h", user=None)
    assert spec == {"process": {"args": ["id"]}, "hostname": "h"}
