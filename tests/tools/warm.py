"""What a process makes once, made when this is imported: lists of packages and fonts, and the tree of commands."""

import functools
import io

import typer.main
from matplotlib.figure import Figure
from mlflow.utils.requirements_utils import _init_packages_to_modules_map
from PIL import Image

from orchestration.cli.app import app
from orchestration.record.origin import _packages

Image.init()
figure = Figure()
figure.subplots().set(title="with letters")
figure.savefig(io.BytesIO(), format="png")
_init_packages_to_modules_map()
_packages()
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(app)
