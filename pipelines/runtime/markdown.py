"""Tables as Markdown, ready to paste."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """A Markdown table. numbers: indices of right-aligned columns; negative ones count from the end."""
    right = {column % len(head) for column in numbers}
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(_line(cells) for cells in [head, rule, *rows])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
