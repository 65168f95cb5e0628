"""`boxseg config`: the settings there are, and those of an experiment with where each came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
import yaml

from orchestration.cli.options import AsJson, Experiment, Overrides
from orchestration.cli.output import print_json, print_line

if TYPE_CHECKING:
    from orchestration.config.source import Source
    from orchestration.config.spec import RunSpec

app = typer.Typer(help="Look at settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    from orchestration.config.spec import SweepSpec

    print_json(SweepSpec.model_json_schema())


@app.command()
def show(experiment: Experiment, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print all settings of an experiment and where each comes from; the output is an experiment file again."""
    from orchestration.config.resolved import leaves
    from orchestration.config.spec import load_run, load_sweep, read_settings

    source = read_settings(experiment, overrides or [])
    spec = (load_sweep if "sweep" in source.values else load_run)(experiment, overrides or [])
    values = spec.model_dump(mode="json")
    origins = {name: _origin(name, spec, source) for name, _ in leaves(values)}
    if as_json:
        print_json(
            {name: {"value": value, "from": origins[name]} for name, value in leaves(values)}
        )
    else:
        for line in _lines(values, "", origins):
            print_line(line)


def _origin(name: str, spec: RunSpec, source: Source) -> str:
    """`file:line`, `--set key`, the preset that gives the setting its value, or `default`."""
    from boxseg.config.presets import METHODS, PROFILES

    path = tuple(name.split("."))
    if path in source.places:
        return source.places[path]
    presets = {
        # the method first, whose presets lie over those of the profile
        f"method {spec.method}": METHODS[spec.method],
        f"profile {spec.profile}": PROFILES[spec.profile],
    }
    return next(
        (label for label, preset in presets.items() if path[-1] in preset.get(path[0], {})),
        "default",
    )


def _lines(values: dict[str, Any], prefix: str, origins: dict[str, str]) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        if prefix + name in origins:
            # on one line, however long, as the origin stands behind it
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
            text = text.removesuffix("...\n").strip()  # YAML's end mark after a lone value
            yield f"{indent}{name}: {text}  # {origins[prefix + name]}"
        else:
            yield f"{indent}{name}:"
            yield from _lines(value, f"{prefix}{name}.", origins)
