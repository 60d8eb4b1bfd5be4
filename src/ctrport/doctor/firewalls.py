"""Other people's firewalls that drop what must pass, as findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrport.doctor.finding import Code, Finding, Severity
from ctrport.firewall.foreign import adjust

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrport.doctor.survey import Survey


def check(survey: Survey) -> Iterator[Finding]:
    """Say which chain and rule of whose drops published ports, or what containers send."""
    for obstacle in adjust.diagnose(survey.settings.config, survey.links) if survey.privileged else ():
        if obstacle.unread:
            code, severity = Code.FIREWALL_UNREAD, Severity.WARNING
        elif obstacle.where == "firewalld":  # which lets pass what was translated
            code, severity = Code.FIREWALLD_ZONE, Severity.WARNING
        else:
            code, severity = Code.FORWARD_DROP, Severity.SERIOUS
        yield Finding(code=code, severity=severity, what=f"{obstacle.where}: {obstacle.what}", fix=obstacle.fix)
