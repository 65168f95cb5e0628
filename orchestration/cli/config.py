"""`boxseg config`: the settings there are, and those of an experiment with where each came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
import yaml

from orchestration.cli.output import AsJson, Experiment, Overrides, print_json

app = typer.Typer(help="Look at settings.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    from orchestration.config import SweepSpec

    print_json(SweepSpec.model_json_schema())


@app.command()
def show(experiment: Experiment, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print all settings of an experiment and where each comes from; the output is an experiment file again."""
    from orchestration.config import load_run, load_sweep, read_settings

    source = read_settings(experiment, overrides or [])
    has_sweep = "sweep" in source.values
    spec = load_sweep(experiment, overrides or []) if has_sweep else load_run(experiment, overrides or [])
    values = spec.model_dump(mode="json")
    origins = _Origins(source.places, values["profile"], values["method"])
    if as_json:
        print_json({name: {"value": value, "from": origins.of(name)} for name, value in _settings(values, "")})
        return
    for line in _lines(values, "", origins):
        typer.echo(line)


class _Origins:
    """Tells where a setting comes from, by its dotted name."""

    def __init__(self, places: dict[tuple[str, ...], str], profile: str, method: str) -> None:
        from boxseg.config import METHODS, PROFILES

        self._places = {".".join(path): place for path, place in places.items()}
        self._presets = ((f"method {method}", METHODS[method]), (f"profile {profile}", PROFILES[profile]))  # type: ignore[index]

    def of(self, name: str) -> str:
        if name in self._places:
            return self._places[name]
        for label, preset in self._presets:
            found: Any = preset
            for key in name.split("."):
                found = found.get(key) if isinstance(found, dict) else None
            if found is not None:
                return label
        parent = name.rpartition(".")[0]
        return "default" if parent not in self._places or not self._is_leaf_group(parent) else self._places[parent]

    def _is_leaf_group(self, name: str) -> bool:
        """Whether a group was set as a whole by one --set."""
        return self._places[name] == f"--set {name}"


def _settings(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name != "sweep.space":
            yield from _settings(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _lines(values: dict[str, Any], prefix: str, origins: _Origins) -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name != "sweep.space":
            yield f"{indent}{name}:"
            yield from _lines(value, f"{prefix}{name}.", origins)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
            text = text.removesuffix("...\n").strip()  # YAML's end mark after a lone value
            yield f"{indent}{name}: {text}  # {origins.of(prefix + name)}"
