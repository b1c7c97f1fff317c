"""The commands of README.md and docs/, as they are written there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from functools import cache

from tests.walks.walking import ROOT

BEGINNINGS = ("icre ", "python -m ", "make ")


@cache
def texts() -> dict[str, str]:
    """File name to text."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files}


@cache
def blocks() -> list[list[tuple[str, ...]]]:
    """The commands of each fenced block, as words; comments are gone, continued lines are one."""
    found = []
    for text in texts().values():
        for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found.append([tuple(shlex.split(line, comments=True)) for line in lines if line.startswith(BEGINNINGS)])
    return found


def every_command() -> dict[str, tuple[str, ...]]:
    """All of them, by what is said of them in tests: their words with one space in between."""
    return {" ".join(words): words for block in blocks() for words in block}


def documented(command: str, replaced: Mapping[str, str] | None = None) -> list[str]:
    """The words of a command that stands in the text; replaced: words that stand for something of the reader's own."""
    words = every_command().get(command)
    assert words is not None, f"no longer in README.md or docs/: {command}"
    return [(replaced or {}).get(word, word) for word in words]


def block_with(command: str) -> list[tuple[str, ...]]:
    """All commands of the block in which this one stands, in their order."""
    found = [block for block in blocks() if command in {" ".join(words) for words in block}]
    assert found, f"no longer in README.md or docs/: {command}"
    return found[0]
