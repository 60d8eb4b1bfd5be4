"""doctor: what stops published ports, or one of them, from working."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ctrport.cli.maintenance import FormatOption
from ctrport.cli.output import Format, print_json, print_lines

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator

    from ctrport.doctor.finding import Finding
    from ctrport.doctor.journey import Journey

T = TypeVar("T")
INDENT = "    "
TERMINATED = 128 + signal.SIGTERM


def doctor(
    context: typer.Context,
    port: Annotated[
        str | None,
        typer.Argument(metavar="[[HOSTIP:]PORT[/PROTO]]", help="Follow a packet to this published port."),
    ] = None,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Say what on this host stops published ports from working, and what mends it; exit 1 if it is serious."""
    import logging  # noqa: PLC0415 - commands that do not need it should start without it

    from ctrport.doctor import examine, follow, journey  # noqa: PLC0415

    if not logging.getLogger("ctrport").isEnabledFor(logging.DEBUG):
        logging.getLogger("ctrport").setLevel(logging.CRITICAL)  # what a pass would log are findings here
    if port is None:
        findings = _finish(examine.examine(context.obj))
        _show(findings, format_)
        failed = any(finding.serious for finding in findings)
    else:
        path = _finish(follow.follow(context.obj, journey.parse(port)))
        _show_journey(path, format_)
        failed = not path.answered
    if failed:
        raise typer.Exit(1)


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGTERM ends it as Ctrl-C does, so that nothing of a trace stays in the kernel."""
    import asyncio  # noqa: PLC0415

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None


def _show(findings: Iterable[Finding], format_: Format) -> None:
    if format_ is Format.JSON:
        print_json(findings=[finding.to_json() for finding in findings])
    else:
        print_lines(
            [line for f in findings for line in _text(f)] or ["nothing stands in the way of published ports"]
        )


def _show_journey(path: Journey, format_: Format) -> None:
    if format_ is Format.JSON:
        print_json(**path.to_json())
        return
    width = max(len(stage.name) for stage in path.stages)
    lines = []
    for stage in path.stages:
        told = [finding for finding in stage.findings if finding.what == stage.what]
        code = f" [{told[0].code}]" if told else ""
        lines.append(f"{stage.passed:<7} {stage.name:<{width}}  {stage.what}{code}")
        for finding in stage.findings:
            lines += [f"{INDENT}{line}" for line in list(_text(finding))[finding in told :]]
    print_lines([*lines, path.verdict_text()])


def _text(finding: Finding) -> Iterator[str]:
    """Give the lines of a finding: each line of a fix can be pasted."""
    yield f"{finding.severity}: {finding.what} [{finding.code}]"
    yield from (f"{INDENT}{line}" for line in finding.detail.splitlines())
    yield from (f"{INDENT}fix: {line}" for line in finding.fix)
