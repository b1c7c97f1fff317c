"""Figures of a report: embedded in the page as data URIs, and as separate files for print."""

from __future__ import annotations

import base64
from typing import Literal

from matplotlib.figure import Figure

from icre import figures
from pipelines.runtime.progress import Advance, progress

PRINTED: tuple[Literal["png", "pdf"], ...] = ("png", "pdf")


class FigureCollector:
    """Collects all figures of a page by name."""

    def __init__(self, advance: Advance | None = None) -> None:
        """advance: called after each embedded figure."""
        self._figures: dict[str, Figure] = {}
        self._advance = advance

    def embed(self, name: str, figure: Figure, kind: Literal["svg", "webp"]) -> str:
        """A data URI for the page. As a separate image, a figure's ids cannot clash with those of another."""
        assert name not in self._figures, name
        self._figures[name] = figure
        mime = {"svg": "image/svg+xml", "webp": "image/webp"}[kind]
        encoded = base64.b64encode(figures.encode(figure, kind)).decode()
        if self._advance is not None:
            self._advance(1)
        return f"data:{mime};base64,{encoded}"

    @property
    def names(self) -> list[str]:
        """Names of all figures in page order."""
        return list(self._figures)

    def files(self) -> dict[str, bytes]:
        """Content by file name: each figure as PNG and PDF at print size."""
        content: dict[str, bytes] = {}
        with progress("report: figures for print", len(self._figures), "figures") as advance:
            for name, figure in self._figures.items():
                content |= {f"{name}.{kind}": figures.encode(figure, kind) for kind in PRINTED}
                advance(1)
        return content
