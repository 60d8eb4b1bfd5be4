"""What can go wrong, by whose fault it is.

A message says what was tried, on what, and what came back; the hint is the command or change that mends it.
Only `cli/` turns these into text and exit codes.
"""

from __future__ import annotations


class CtrportError(Exception):
    """Root of every error that this program raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(CtrportError):
    """The user's words are wrong: an option, a port spec, a name, a configuration file."""

    exit_code = 2


class PortSpecError(InputError):
    """A port spec outside the grammar; the message quotes it."""


class ConflictError(CtrportError):
    """A name, address or host port that somebody else holds; the message says who."""


class NotFoundError(CtrportError):
    """No such container, image or port."""


class HostError(CtrportError):
    """This host lacks something: privileges, a program, a kernel feature, a writable setting."""


class ContainerdError(CtrportError):
    """containerd could not be reached, or refused what was asked."""


class KernelError(CtrportError):
    """Netfilter or netlink refused a change; nothing of it was applied."""
