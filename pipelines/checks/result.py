"""The outcome of one check, with the rule it was held against and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from icre.errors import IcreError

State = Literal["ok", "warning", "failed"]
_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


@dataclass(frozen=True)
class CheckResult:
    """One check: ``value`` is the observation, ``rule`` the requirement, ``fix`` the remedy if it is not met."""

    name: str
    state: State
    value: str
    rule: str
    fix: str = ""
    node: str = "here"


def judge(name: str, value: str, *, rule: str, fix: str, failed: bool, warning: bool = False) -> CheckResult:
    """A finding; the fix is included only if it failed or is a warning."""
    state: State = "failed" if failed else "warning" if warning else "ok"
    return CheckResult(name, state, value, rule, "" if state == "ok" else fix)


def reported(name: str, rule: str, check: Callable[[], Iterable[CheckResult]]) -> list[CheckResult]:
    """The findings of ``check``; an IcreError it raises becomes a failed finding."""
    try:
        return list(check())
    except IcreError as error:
        return [CheckResult(name, "failed", error.message, rule, error.hint)]


def table(findings: Sequence[CheckResult]) -> Table:
    """Findings as a console table."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("Where", "Check", "State", "Found", "Rule, and what to do"):
        made.add_column(title, overflow="fold")
    for found in findings:
        last = found.rule if found.state == "ok" else f"{found.rule}. {found.fix}"
        cells = [Text(found.node), Text(found.name), Text(found.state, style=_STYLES[found.state])]
        made.add_row(*cells, Text(found.value), Text(last))
    return made
