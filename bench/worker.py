"""A process at work on a host of its own, beside a container: a line to it is answered with one of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lab import Lab

if TYPE_CHECKING:
    from lab import Netns

CONTAINER = "198.51.100.2"


class Worker(ABC):
    """The lab and the process, as long as the block; it says a first line once it is ready."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = ExitStack()
        self._process: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lab = stack.enter_context(Lab())
            lab.bridge("br0", "198.51.100.1/24")
            container = lab.container_like("many", "br0", f"{CONTAINER}/24", gateway4="198.51.100.1")
            where, words = self._prepare(stack, lab, container)
            self._process = where.popen(
                *(sys.executable, *words),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            self._read()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @abstractmethod
    def _prepare(self, stack: ExitStack, lab: Lab, container: Netns) -> tuple[Netns, tuple[str | Path, ...]]:
        """Make the host ready; gives where the process runs, and the interpreter's arguments."""

    def tell(self, line: str) -> Any:
        """Give the answer to a line."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the process of {self._name} ended; its words are above")
        return json.loads(line)
