"""A configuration written out: as plain values for JSON, and as a config.toml that says the same."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ctrport.config import Config
from ctrport.model.policy import Span

if TYPE_CHECKING:
    from ctrport.model.policy import Policy, Rule

NOT_A_KEY = "sysctl_directory_given"  # but whether one was written


def plain(config: Config) -> dict[str, Any]:
    """Give every key with its value, defaults too, as JSON can hold it."""
    found = {f.name: getattr(config, f.name) for f in fields(Config) if f.name not in ("policy", NOT_A_KEY)}
    return {**{key: _plain(value) for key, value in found.items()}, "policy": _policy(config.policy)}


def toml(values: dict[str, Any]) -> str:
    """Write what `plain` gave as a config.toml, from which `read` makes the same configuration."""
    tables = {"policy": {key: value for key, value in values["policy"].items() if key != "allow"}}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    lines[0] = f"mark = {values['mark']:#x}"
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    for rule in values["policy"]["allow"]:
        lines += ["", "[[policy.allow]]", *(f"{key} = {_toml(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _policy(policy: Policy) -> dict[str, Any]:
    return {
        "trust_labels": policy.trust_labels,
        "protected_ports": _plain(policy.protected_ports),
        "allow": [_rule(rule) for rule in policy.allow],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    """Give what a rule says, without what it leaves open."""
    values = {f.name: getattr(rule, f.name) for f in fields(rule) if f.name != "labels"}
    found = {key: _plain(value) for key, value in values.items() if value is not None}
    found = {key: value for key, value in found.items() if value or not key.endswith("namespaces")}
    return {**found, **({"labels": dict(rule.labels)} if rule.labels else {})}


def _plain(value: Any) -> Any:
    if isinstance(value, Span):
        return value.first if value.first == value.last else str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if value is None:
        return ""
    return value if isinstance(value, bool | int | float) else str(value)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml(k)} = {_toml(v)}' for k, v in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's strings are TOML's basic ones, but that TOML wants DEL escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
