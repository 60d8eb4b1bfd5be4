"""The C library's memory: one arena for all threads."""

from __future__ import annotations

import ctypes

M_ARENA_MAX = -8  # malloc.h of glibc


def share() -> None:
    """Let all threads take memory from one place; before there are any.

    Passes run in whichever thread of a pool is free, and glibc keeps what a thread has given back for the next one
    that uses its arena: a listing of 20,000 elements, 50 MiB for a moment, would be kept once for each.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none, and no arenas
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
