"""`boxseg config`: the settings there are, and those of an experiment with where each came from."""

from __future__ import annotations

import typer

from orchestration.cli.options import AsJson, Experiment, Overrides
from orchestration.cli.output import print_json, print_line

app = typer.Typer(help="Look at settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    from orchestration.config.spec import SweepSpec

    print_json(SweepSpec.model_json_schema())


@app.command()
def show(experiment: Experiment, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print all settings of an experiment and where each comes from; the output is an experiment file again."""
    from orchestration.config.resolved import commented_yaml, find_origins, leaves
    from orchestration.config.spec import load_run, load_sweep, read_settings

    source = read_settings(experiment, overrides or [])
    spec = (load_sweep if "sweep" in source.values else load_run)(experiment, overrides or [])
    values = spec.model_dump(mode="json")
    origins = find_origins(spec, source)
    if as_json:
        about = {name: {"value": value, "from": origins[name]} for name, value in leaves(values)}
        print_json(about)
    else:
        for line in commented_yaml(values, above={}, behind=origins):
            print_line(line)
