"""Checks shared by the benchmark sources: arguments, problems that stop reading, and published counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from icre.data.records import Modality, Record
from icre.errors import DataError, ProtocolError

_SHOWN = 5


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ProtocolError when an argument is not one of ``choices``."""
    allowed = list(choices)
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise ProtocolError(f"{name} is {value!r}; it must be one of {listed}", hint=f"choose another {name}")


def stop_for(problems: Sequence[str], where: Path, *, hint: str) -> None:
    """Raise DataError with the number of ``problems`` and the first few of them, if there are any."""
    if problems:
        lines = [f"  - {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  - and {len(problems) - _SHOWN} more")
        raise DataError("\n".join([f"{where}: {len(problems)} problem(s):", *lines]), hint=hint)


def differences(found: Mapping[str, int], published: Mapping[str, int]) -> list[str]:
    """One line per count that differs from the published one; both mappings have the same keys."""
    assert found.keys() == published.keys()
    return [
        f"{name}: {found[name]:,} found, {count:,} published"
        for name, count in published.items()
        if found[name] != count
    ]


def identities(records: Iterable[Record]) -> set[str]:
    """Identities of ``records``."""
    return {record.pid for record in records}


def count_images(records: Iterable[Record], modality: Modality) -> int:
    """Number of ``records`` in ``modality``."""
    return sum(record.modality == modality for record in records)
