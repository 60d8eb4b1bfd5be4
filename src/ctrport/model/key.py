"""What identifies a container. By itself: most commands need no more of the model than this."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """containerd's namespace and container id: what identifies a container on one host."""

    namespace: str
    id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.id}"
