"""Short runs of scripts/soak, each with a seed of its own; the long ones are for hands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def soak(*options: str) -> str:
    """Run the soak and give what it says; its exit code is 0."""
    found = subprocess.run(
        [sys.executable, "-m", "soak", *options],
        check=False,
        cwd=TESTS,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout[-20000:] + found.stderr[-4000:]
    return found.stdout


def test_operations_and_faults_on_real_containers():
    """After each round the kernel holds what `ctr` lists, ports answer by packets, and nothing is left over."""
    said = soak("--minutes", "0.5", "--seed", "3")
    assert "mismatches:   0\n" in said


def test_kills_at_random_instants():
    """Thirty watchers killed in starts and passes: the next one always comes to the same table."""
    said = soak("--kills", "30", "--seed", "3")
    assert "kills:       30," in said
    assert "mismatches:  0\n" in said
