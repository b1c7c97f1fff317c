"""The figures of a report: inside the page as data, and beside it as files for print."""

from __future__ import annotations

import base64
from typing import Literal

from matplotlib.figure import Figure

from icre import figures
from pipelines.runtime.progress import Advance, progress

PRINTED: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")


class FigureCollector:
    """Collects every figure that a page shows, by name."""

    def __init__(self, advance: Advance | None = None) -> None:
        """advance: called after each figure that is put into the page."""
        self._figures: dict[str, Figure] = {}
        self._advance = advance

    def embed(self, name: str, figure: Figure, kind: Literal["svg", "webp"]) -> str:
        """A data URI for the page. As an image of its own, a figure cannot clash with the ids of another one."""
        assert name not in self._figures, name
        self._figures[name] = figure
        mime = {"svg": "image/svg+xml", "webp": "image/webp"}[kind]
        encoded = base64.b64encode(figures.encode(figure, kind)).decode()
        if self._advance is not None:
            self._advance(1)
        return f"data:{mime};base64,{encoded}"

    @property
    def names(self) -> list[str]:
        """Of all figures, in the order of the page."""
        return list(self._figures)

    def files(self) -> dict[str, bytes]:
        """Content by file name: each figure as PNG and PDF, at print size."""
        content: dict[str, bytes] = {}
        with progress("report: figures for print", len(self._figures), "figures") as advance:
            for name, figure in self._figures.items():
                content |= {f"{name}.{kind}": figures.encode(figure, kind) for kind in PRINTED}
                advance(1)
        return content
