"""A host that doctor is asked about, and what it finds; fixes are run as they are written."""

from __future__ import annotations

import json
import shlex
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from program import Cli


class Patient:
    """`ctrport doctor` on the lab's host, and a shell there that knows the command `ctrport`."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.host = cli.containerd.lab.host
        self.passes_over = ""  # a finding that a test has made by itself
        self._programs = cli.directory / "bin"
        self._programs.mkdir()
        program = self._programs / "ctrport"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ctrport "$@"\n')
        program.chmod(0o755)
        self.environment = {
            **cli.environment,
            "CTRPORT_ROOT": str(cli.root),
            "CTRPORT_STATE": str(cli.state),
            "PATH": f"{self._programs}:{cli.environment['PATH']}",
        }

    def shell(self, script: str, *prefix: str, check: bool = True, **environment: str) -> str:
        """Run a script in a shell on the host and give what it prints."""
        env = {**self.environment, **environment}
        return self.host.run(*prefix, "sh", "-ec", script, check=check, env=env, timeout=60).stdout

    def doctor(self, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
        """Give what doctor says as JSON, with its exit code as "code"."""
        env = {**self.environment, **environment}
        argv = (*prefix, str(self._programs / "ctrport"), "doctor", *arguments, "--format", "json")
        result = self.host.run(*argv, check=False, env=env, timeout=60)
        assert result.returncode in (0, 1), result.stderr
        return {**json.loads(result.stdout), "code": result.returncode}

    def findings(self, **options: Any) -> dict[str, dict[str, Any]]:
        """Give the findings by code; the exit code is checked against how serious they are."""
        said = self.doctor(**options)
        serious = any(finding["severity"] == "serious" for finding in said["findings"])
        assert said["code"] == int(serious)
        return {found["code"]: found for found in said["findings"] if found["code"] != self.passes_over}

    def mend(self, finding: dict[str, Any], **environment: str) -> None:
        """Run the lines of a fix, as somebody who pastes them."""
        assert finding["fix"]
        self.shell("\n".join(finding["fix"]), **environment)
