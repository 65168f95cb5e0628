"""`boxseg export`: a trained network as a file for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestration.cli.open_run import Run, open_predictor
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
    from boxseg.export import export_network

    path = output or Path(f"model.{ENDINGS[form]}")
    about = export_network(open_predictor(run, storage=storage, device="cpu"), form, path)
    if as_json:
        print_json(about | {"file": path})
    else:
        shown = ("difference", "seconds", "torch_seconds")
        print_pairs([("file", path), *((name.replace("_", " "), about[name]) for name in shown if name in about)])
