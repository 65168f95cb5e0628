"""`boxseg export`: a trained network as a file for others."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from boxseg.errors import ConfigError
from orchestration.cli.open_run import Run, checkpoint_of, open_predictor
from orchestration.cli.output import AsJson, Storage, print_json, print_pairs

ENDINGS = {"onnx": "onnx", "torchscript": "pt", "safetensors": "safetensors"}


def export(
    run: Run,
    form: Annotated[Literal["onnx", "torchscript", "safetensors"], typer.Option("--format", help="What to write.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="File to write; model.onnx and the like if left out."),
    ] = None,
    storage: Storage = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write the network of a run for use without boxseg, and check that the file does what the network does.

    A JSON file beside it names classes, sizes and the mean colour; docs/deploy.md shows how to use both.
    """
    _require_exportable(checkpoint_of(run, storage), form)  # before anything slow is loaded
    from boxseg.export import export_network

    path = output or Path(f"model.{ENDINGS[form]}")
    about = export_network(open_predictor(run, storage=storage, device="cpu"), form, path)
    if as_json:
        print_json(about | {"file": path})
    else:
        shown = ("difference", "seconds", "torch_seconds")
        print_pairs([("file", path), *((name.replace("_", " "), about[name]) for name in shown if name in about)])


def _require_exportable(checkpoint: Path, form: str) -> None:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # damage is told by what opens it
        kind = json.loads((checkpoint / "about.json").read_bytes())["config"]["model"]["kind"]
        if kind != "condinst" and form != "safetensors":
            raise ConfigError(
                f"{checkpoint}: --format {form} takes networks of model.kind condinst, this one is {kind}; "
                "--format safetensors takes any, `boxseg predict` and `boxseg label` run it"
            )
