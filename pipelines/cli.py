"""The console script ``icre``: one subcommand a verb."""

from __future__ import annotations

from pipelines import (
    ablate,
    demo,
    doctor,
    evaluate,
    inspect_data,
    prepare,
    regdb,
    report,
    retrain,
    show_config,
    show_model,
    submit,
    synthesize,
    train,
    tune,
)
from pipelines.command import new_app, run_app
from pipelines.registry import verbs as registry_verbs

app = new_app()
app.command("demo")(demo.command)
app.command("synthesize")(synthesize.command)
app.command("prepare")(prepare.command)
app.command("train")(train.command)
app.command("evaluate")(evaluate.command)
app.command("ablate")(ablate.command)
app.command("regdb")(regdb.command)
app.command("report")(report.command)
app.command("retrain")(retrain.command)
app.command("model")(show_model.command)
app.command("submit", context_settings=submit.CONTEXT)(submit.command)
app.command("doctor")(doctor.command)
app.add_typer(registry_verbs.app, name="registry", help="Which model serves, its history, and changes by hand.")
app.add_typer(tune.app, name="tune", help="Train over a search space; how far such a sweep is.")
app.add_typer(show_config.app, name="config", help="Show the resolved recipe, or the schema of every key.")
app.add_typer(inspect_data.app, name="data", help="Look into a prepared data set.")


def main() -> None:
    """Entry point."""
    run_app(app)


if __name__ == "__main__":
    main()
