"""The end of a task, against a fake containerd that speaks the real wire."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from ctrport import lifecycle
from ctrport.containerd.client import Client
from ctrport.containerd.rpc import grpc
from ctrport.errors import ContainerdError
from ctrport.model.workload import Key
from fakes import FakeContainerd

if TYPE_CHECKING:
    from pathlib import Path

WEB = Key("default", "web")


async def test_an_end_that_is_noticed_late(tmp_path: Path):
    """A task counts as ended when containerd says so soon, or knows of none; one that runs on does not."""
    async with FakeContainerd(tmp_path / "c.sock") as fake, Client(f"unix://{fake.address}") as client:
        fake.add(WEB)
        assert await lifecycle.ends(client, WEB, within=0.1)
        fake.start(WEB)
        assert not await lifecycle.ends(client, WEB, within=0.1)
        asyncio.get_running_loop().call_later(0.1, fake.exit, WEB)
        assert await lifecycle.ends(client, WEB, within=30)


async def test_a_shim_that_ends_while_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A signal that containerd could not send is no failure when the task has ended, also a moment later."""
    async with FakeContainerd(tmp_path / "c.sock") as fake, Client(f"unix://{fake.address}") as client:
        fake.add(WEB)
        fake.start(WEB)
        fake.fail["tasks_kill"] = grpc.StatusCode.UNKNOWN
        asyncio.get_running_loop().call_later(0.1, fake.exit, WEB)
        await lifecycle.kill(client, WEB)
        fake.start(WEB)
        monkeypatch.setattr(lifecycle, "SHIM_PATIENCE", 0.1)
        with pytest.raises(ContainerdError, match="cannot send signal 9"):
            await lifecycle.kill(client, WEB)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("SIGQUIT", signal.SIGQUIT),
        ("QUIT", signal.SIGQUIT),
        ("sigint", signal.SIGINT),
        ("28", signal.SIGWINCH),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),  # systemd's
        ("RTMAX-14", signal.SIGRTMAX - 14),
        ("", signal.SIGTERM),
        ("0", signal.SIGTERM),
        ("65", signal.SIGTERM),
        ("SIGNOTHING", signal.SIGTERM),
        ("SIGTERM; reboot", signal.SIGTERM),
    ],
)
def test_stop_signal(text: str, number: int):
    assert lifecycle.stop_signal({lifecycle.STOP_SIGNAL: text}) == number


def test_no_stop_signal():
    assert lifecycle.stop_signal({}) == signal.SIGTERM
