"""The console script ``icre``: one subcommand a verb."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.runtime.command import new_app, run_app
from pipelines.verbs import VERBS, command_of


class Verbs(TyperGroup):
    """The table of verbs. Help and completion list it as it is; a verb that is named is imported."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The real command in the place of the table's line."""
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
    """What is no verb's own: --version."""


def _line() -> None:
    """A verb of the table, never called: :class:`Verbs` puts the real one in its place."""


for _name, _verb in VERBS.items():
    app.command(_name, short_help=_verb.summary)(_line)


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
