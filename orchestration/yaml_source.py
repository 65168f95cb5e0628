"""Settings as they were written: nested values from YAML and `--set`, each with the place it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boxseg.config import Config
from boxseg.errors import ConfigError

KeyPath = tuple[str, ...]

_PATHS = (
    "data.train.images",
    "data.train.annotations",
    "data.val.images",
    "data.val.annotations",
    "model.init_checkpoint",
    "model.weights",
    "storage",
)
"""Settings that are paths."""


@dataclass(frozen=True)
class Source:
    """Nested values, and where each was written."""

    name: str
    """The file, as its user wrote it."""
    values: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)
    """Path of keys -> `file:line` or `--set key`."""

    def place(self, path: Sequence[Any]) -> str:
        """Where the setting at `path` was written, or the closest group around it."""
        for length in range(len(path), 0, -1):
            if tuple(path[:length]) in self.places:
                return self.places[tuple(path[:length])]
        return self.name


def read_source(path: Path) -> Source:
    """Read one YAML file; an empty file holds no settings.

    Raises:
        ConfigError: no such file, not UTF-8, a syntax error, a key given twice, or something else than a mapping.
    """
    loader = _Loader(_read_text(path))
    try:
        node = loader.get_single_node()
        reader = _NodeReader(loader, str(path))
        values = {} if node is None else reader.read(node, ())
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(error, str(path))) from error
    finally:
        loader.dispose()
    if values is None:  # only comments, or a lone `null`
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}:1: holds {_kind(values)}; an experiment file is a mapping such as `name: qam`")
    return Source(str(path), values, reader.places if node is not None else {})


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """`qam.k_top=10` -> (("qam", "k_top"), 10); the value is YAML.

    Keys below `sweep.space` are setting names with dots: `sweep.space.qam.k_top={choice: [1, 5]}`.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w/-]+(\.[\w/-]+)*", key):
        raise ConfigError(f"--set {text}: not of the form key=value; write for example --set qam.k_top=10")
    loader = _Loader(value)
    try:
        node = loader.get_single_node()
        parsed = None if node is None else _NodeReader(loader, f"--set {key}").read(node, ())
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {_problem(error)}; quote it") from error
    finally:
        loader.dispose()
    parts = tuple(key.split("."))
    if parts[:2] == ("sweep", "space") and len(parts) > 2:
        parts = (*parts[:2], ".".join(parts[2:]))
    return parts, parsed


def override(source: Source, path: KeyPath, value: Any) -> Source:
    """A new source in which `value` stands at `path`, in place of all that was there."""
    places = {key: place for key, place in source.places.items() if key[: len(path)] != path}
    label = f"--set {'.'.join(path)}"
    for length in range(1, len(path)):
        places.setdefault(path[:length], label)
    return Source(source.name, assign(source.values, path, value), {**places, path: label})


def assign(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A new nested dict with `value` at `path`; groups on the way are made, or replaced where they are no groups."""
    if len(path) == 1:
        return {**values, path[0]: value}
    group = values.get(path[0])
    if isinstance(group, Config):
        group = group.model_dump(exclude_unset=True)
    return {**values, path[0]: assign(group if isinstance(group, dict) else {}, path[1:], value)}


def absolute_paths(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A new nested dict in which relative paths start at `folder`."""
    for name in _PATHS:
        keys = name.split(".")
        group: Any = values
        for key in keys[:-1]:
            group = group.get(key) if isinstance(group, dict) else None
        value = group.get(keys[-1]) if isinstance(group, dict) else None
        if isinstance(value, str) and "://" not in value and value not in ("auto", "imagenet", "none"):
            path = folder / Path(value).expanduser()
            values = assign(values, keys, str(path.resolve() if ".." in path.parts else path))
    space = values["sweep"].get("space") if isinstance(values.get("sweep"), dict) else None
    if isinstance(space, dict):
        placed = {name: _absolute_choices(name, domain, folder) for name, domain in space.items()}
        values = assign(values, ("sweep", "space"), placed)
    return values


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain values of YAML 1.2: `on` and `off` are words, `1e-4` is a number, no dates."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (filled below, as PyYAML does)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _NodeReader:
    """Turns YAML nodes into plain values and remembers the line of every key."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.places: dict[KeyPath, str] = {}
        self._loader = loader
        self._name = name
        self._open: list[yaml.Node] = []

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if any(node is outer for outer in self._open):
            raise ConfigError(f"{self._at(node)}: an alias points at the group that holds it; write the values out")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._read_mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
            return self._loader.construct_object(node)
        finally:
            self._open.pop()

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise ConfigError(f"{self._at(key_node)}: a setting's name must be a word, not a list or mapping")
            line = key_node.start_mark.line + 1
            if key in values:
                dotted = ".".join((*path, key))
                raise ConfigError(
                    f"{self._at(key_node)}: {dotted} is given twice, first on line {lines[key]}; keep one of them"
                )
            lines[key] = line
            self.places[(*path, key)] = self._at(key_node)
            values[key] = self.read(value_node, (*path, key))
        return values

    def _at(self, node: yaml.Node) -> str:
        return self._name if self._name.startswith("--set") else f"{self._name}:{node.start_mark.line + 1}"


def _absolute_choices(name: str, domain: Any, folder: Path) -> Any:
    if not isinstance(domain, dict) or not isinstance(domain.get("choice"), list):
        return domain
    keys = name.split(".")
    choices: list[Any] = []
    for value in domain["choice"]:
        placed: Any = absolute_paths(assign({}, keys, value), folder)
        for key in keys:
            placed = placed[key]
        choices.append(placed)
    return {**domain, "choice": choices}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        beside = sorted(other.name for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"{path.parent} has: {', '.join(beside)}" if beside else "give the path of an experiment file"
        raise ConfigError(f"{path}: no such file; {hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 text (byte {error.start}); an experiment file is YAML in UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of an experiment file") from error


def _syntax_message(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}" if mark is not None else name
    return f"{place}: not valid YAML: {_problem(error)}; check indentation, colons, quotes and brackets near this line"


def _problem(error: yaml.YAMLError) -> str:
    context, problem = getattr(error, "context", None), getattr(error, "problem", None)
    text = ", ".join(part for part in (context, problem) if part)
    return text or str(error).splitlines()[0]


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"
