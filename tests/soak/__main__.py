# ruff: noqa: T201 - a program of its own, which talks to whoever started it
"""The command line of scripts/soak."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys

from soak.crowd import crowd
from soak.kills import kills
from soak.load import load
from soak.rounds import soak


def say(text: str) -> None:
    print(text, flush=True)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Random operations and faults; compare.")
    parser.add_argument("--minutes", type=float, default=5, help="how long (5)")
    parser.add_argument("--seed", type=int, help="do the same operations and faults again")
    parser.add_argument("--kills", type=int, metavar="N", help="kill the watcher N times, on a fake containerd")
    parser.add_argument("--load", action="store_true", help="10,000 mappings, on a fake containerd")
    parser.add_argument("--crowd", type=int, metavar="N", help="N real containers at once")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        if given.kills:
            return kills(given.kills, seed, say)
        if given.load:
            return load(say)
        if given.crowd:
            return crowd(given.crowd, say)
        return soak(given.minutes, seed, say)
    except KeyboardInterrupt:
        say("soak: interrupted; everything is removed")
        return 130


if __name__ == "__main__":
    sys.exit(main())
