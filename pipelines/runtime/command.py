"""The command line shared by all verbs: options, error reporting and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from icre.errors import IcreError

if TYPE_CHECKING:
    from icre import config

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Recipe (YAML), see configs/. If omitted, the defaults.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY.SUB=VALUE...", help="Overrides of single recipe keys.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe, counts and what would be written. Write nothing.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print the resolved recipe to standard error.")]
RunName = Annotated[str, typer.Option("--run", help="Name of a run in <storage>/runs; latest: the newest.")]


class RunByDefault(TyperGroup):
    """Group with the default subcommand ``run``: ``icre tune key=value`` is ``icre tune run key=value``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Prepend ``run`` to anything but a subcommand, --help or the completion of an empty command line."""
        named = args[0] in (*self.commands, "--help") if args else ctx.resilient_parsing
        return super().parse_args(ctx, args if named else ["run", *args])


def new_app(
    cls: type[TyperGroup] | None = None, summary: str | None = None, *, completion: bool = False
) -> typer.Typer:
    """A Typer application with plain tracebacks. completion: add the options that set up shell completion."""
    return typer.Typer(
        cls=cls,
        help=summary,
        add_completion=completion,
        pretty_exceptions_enable=False,
        no_args_is_help=cls is not RunByDefault,
        rich_markup_mode=None,
    )


def app_of(command: Callable[..., Any]) -> typer.Typer:
    """An application with this single command."""
    app = new_app()
    app.command()(command)
    return app


def run_command(command: Callable[..., Any]) -> None:
    """Body of ``python -m pipelines.<verb>``."""
    run_app(app_of(command))


def read_recipe(config_file: Path | None, overrides: list[str] | None) -> config.Recipe:
    """The recipe of a command line with absolute locations, as other processes have other working directories."""
    from icre import config  # not needed for help texts, and as slow to import as all of Typer

    return config.located(config.load_recipe(config_file, overrides or []), Path.cwd())


def override_recipe(recipe: config.Recipe, overrides: Sequence[str], *, where: str) -> config.Recipe:
    """A run's ``recipe`` with the overrides of a command line, with their locations made absolute."""
    from icre import config  # as in read_recipe

    return config.located(config.override(recipe, overrides, where=where), Path.cwd())


def run_app(app: typer.Typer) -> None:
    """Run ``app``; report an error that the user can act on in two lines, and exit with its code.

    0: done. 1: failed. 2: user error (as for a wrong option). 130: Ctrl-C. 143: stopped gracefully by SIGTERM.
    """
    if cache := os.environ.get("ICRE_CACHE"):
        os.environ["ICRE_CACHE"] = str(Path(cache).expanduser().absolute())  # for the processes that inherit it
    try:
        app()
    except IcreError as error:
        from rich.console import Console  # only needed to report an error

        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("[bold red]error:[/]", end=" ")
        console.print(error.message, markup=False)
        if error.hint:
            console.print("[bold]hint:[/]", end=" ")
            console.print(error.hint, markup=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # `icre … | head` closed the pipe: redirect stdout, or Python reports the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
