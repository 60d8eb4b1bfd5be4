"""Memory of many threads."""

from __future__ import annotations

import subprocess
import sys

# Prints how many arenas four threads have used at once.
PROGRAM = """
import ctypes, sys, threading
sys.path[:0] = {path!r}
from ctrport.host import memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.fdopen.restype = ctypes.c_void_p
if {shared}:
    memory.share()
together = threading.Barrier(4)
def work():
    for _ in range(1000):
        libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def arenas(*, shared: bool) -> int:
    program = PROGRAM.format(path=sys.path, shared=shared)
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=30)
    return found.stdout.count("<heap nr=")


def test_threads_share_one_arena():
    """What one thread has given back serves the others too; without the call each keeps its own."""
    assert arenas(shared=True) == 1
    assert arenas(shared=False) > 1
