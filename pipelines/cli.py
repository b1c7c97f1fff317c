"""The console script ``icre``: one subcommand per verb."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.runtime.command import new_app, run_app
from pipelines.verbs import VERBS, command_of


class Verbs(TyperGroup):
    """The table of verbs. Help and completion list the table itself; only the verb on the command line is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Replace the table's placeholder with the real command."""
        name, line, rest = super().resolve_command(ctx, args)
        return name, command_of(name) if name in VERBS else line, rest


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"icre {metadata.version('icre')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]

app = new_app(Verbs, "Visible-infrared person re-identification as a training pipeline on Ray.", completion=True)


@app.callback()
def icre(version: Version = False) -> None:
    """Options of the program itself: --version."""


def _line() -> None:
    """Placeholder for a verb, never called: :class:`Verbs` substitutes the real command."""


for _name, _verb in VERBS.items():
    app.command(_name, short_help=_verb.summary)(_line)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
