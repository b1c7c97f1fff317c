"""An append-only log in storage: numbered JSON objects, each of which is created once.

Creating number n + 1 is a compare-and-swap on "n is the newest": of all writers that saw n, exactly one succeeds. The
store only has to support creating an object unless it exists, and the history is kept.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pipelines.storage import Storage


@dataclass(frozen=True)
class Log:
    """Entries 1, 2, … below ``location``."""

    location: Storage

    def numbers(self) -> list[int]:
        """Numbers of the existing entries, ascending; other files are ignored."""
        return sorted(int(match[1]) for name in self.location.list() if (match := re.fullmatch(r"(\d+)\.json", name)))

    def newest(self) -> int:
        """The highest number, 0 for an empty log."""
        return max(self.numbers(), default=0)

    def read(self, number: int) -> dict[str, Any]:
        """Entry ``number``. Raises StorageNotFoundError if there is none."""
        entry: dict[str, Any] = self.path(number).read_json()
        return entry

    def append(self, entry: dict[str, Any], *, after: int) -> bool:
        """Whether ``entry`` became number ``after`` + 1; False if another writer's did."""
        return self.path(after + 1).create((json.dumps(entry, indent=2) + "\n").encode())

    def path(self, number: int) -> Storage:
        """Location of an entry."""
        return self.location / f"{number:06d}.json"
