"""Settings as they were written: nested values from YAML and `--set`, each with the place it came from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boxseg.config.presets import merge
from boxseg.errors import ConfigError
from boxseg.files.writing import read_plain, reason_of
from orchestration.secret_text import ENVIRONMENT, find_secret

KeyPath = tuple[str, ...]

_PATHS = (
    "data.train.images",
    "data.train.annotations",
    "data.val.images",
    "data.val.annotations",
    "model.start_from",
    "model.weights",
    "storage",
)
"""Settings that are paths; `model.start_from` can name a run as well."""

SQLITE = "sqlite:///"
"""What addresses of SQLite files begin with; the path behind it is relative without one more slash."""

STATE_DICTS = (".safetensors", ".pt", ".pth")
"""Endings of files that `model.start_from` takes."""

MERGE = "<<"
"""YAML's key for taking over the settings of another group of the file."""
MAX_BYTES = 2**18
"""Largest experiment file [bytes]: usual ones have a few thousand, and PyYAML takes seconds for this."""
MAX_DEPTH = 30
"""Most groups within groups; the settings have four."""
MAX_VALUES = 50_000
"""Most values of a file, aliases written out: a few lines of them can stand for more than memory holds."""
MAX_DIGITS = 18
"""Most digits of a whole number, so that it fits in 64 bits."""
MAX_TEXT = 4096
"""Most characters of a setting or its name; paths have no more."""
SHOWN = 10
"""Most files that a message names."""


@dataclass(frozen=True)
class Source:
    """Nested values, and where each was written."""

    name: str
    """The file, as its user wrote it."""
    values: dict[str, Any]
    places: dict[KeyPath, str]
    """Path of keys -> `file:line` or `--set key`."""

    def place(self, path: Sequence[str]) -> str:
        """Where the setting at `path` was written, or the closest group around it."""
        for length in range(len(path), 0, -1):
            group = tuple(path[:length])
            if group in self.places:
                return self.places[group]
        return self.name


def read_source(path: Path, above: tuple[Path, ...] = ()) -> Source:
    """Read one YAML file; an empty file holds no settings, and relative paths in it start at its folder.

    `base: OTHER.yaml` at the top takes over the settings of another file, and the file's own win over them. `above` are
    the files on the way here.

    Raises:
        ConfigError: no such file, not UTF-8, a syntax error, a key given twice, something else than a mapping, more
            than experiment files can need, or a secret.
    """
    values, places = _parse(_read_text(path), str(path), folder=path.absolute().parent)
    if values is None:  # only comments, or a lone `null`
        values = {}
    if not isinstance(values, dict):
        content = "a list" if isinstance(values, list) else f"the single value {values!r:.60}"
        rule = "an experiment file is a mapping such as `name: qam`"
        raise ConfigError(f"{path}:1: holds {content}; {rule}")
    if "base" not in values:
        return Source(str(path), values, places)
    base = _read_base(path, values.pop("base"), places[("base",)], (*above, path.resolve()))
    return Source(str(path), merge(base.values, values), base.places | places)


def _read_base(path: Path, base: Any, place: str, above: tuple[Path, ...]) -> Source:
    """The settings of the file that `base` names, relative to the file that names it."""
    if not isinstance(base, str):
        rule = "it names one experiment file, such as base: coco_r50_1x.yaml"
        raise ConfigError(f"{place}: base is {base!r}; {rule}")
    other = path.parent / base
    if other.resolve() in above:
        raise ConfigError(
            f"{place}: base {base} leads back to itself; a chain of files needs an end"
        )
    return read_source(other, above)


def override(source: Source, text: str) -> Source:
    """A new source with the `key=value` of a `--set` in place.

    The value is YAML; relative paths in it start at the current folder. Keys below `sweep.space` are
    setting names with dots: `sweep.space.qam.k_top={choice: [1, 5]}`.

    Raises:
        ConfigError: the text is no `key=value` that is allowed, or would drop other settings of the file.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not re.fullmatch(r"[\w/-]+(\.[\w/-]+)*", key):
        example = "write for example --set qam.k_top=10"
        raise ConfigError(f"--set {text}: not of the form key=value; {example}")
    if not value:  # would be null, and so the default
        raise ConfigError(f"--set {key}=: has no value; write one behind the sign, perhaps null")
    path = tuple(key.split("."))
    if len(path) > MAX_DEPTH:
        rule = f"there are {MAX_DEPTH} at most"
        raise ConfigError(f"--set {key[:60]}…: names {len(path)} groups in a row; {rule}")
    if path[:2] == ("sweep", "space") and len(path) > 2:
        path = (*path[:2], ".".join(path[2:]))
    label = f"--set {key}"
    parsed, inner = _parse(value, label, folder=Path.cwd(), path=path)
    _check_nothing_is_dropped(source.values, path, parsed)
    # groups on the way, unless the file has them already: `others` comes after
    groups = {path[:length]: label for length in range(1, len(path))}
    # what the file says at this path, or below it, is replaced
    others = {other: place for other, place in source.places.items() if other[: len(path)] != path}
    return Source(
        source.name,
        assign(source.values, path, parsed),
        {**groups, **others, **inner, path: label},
    )


def _check_nothing_is_dropped(values: dict[str, Any], path: KeyPath, group: Any) -> None:
    """Refuse a `--set` of a group that lacks settings which the file gives there; a space may be replaced."""
    if path[:2] == ("sweep", "space"):
        return
    before: Any = values
    for name in path:
        before = before.get(name) if isinstance(before, dict) else None
    if not isinstance(before, dict) or not isinstance(group, dict):
        return
    dropped = [name for name in before if name not in group]
    if dropped:
        key, shown = ".".join(path), ", ".join(dropped[:SHOWN])
        one = next(iter(group), dropped[0])
        way_out = f"set single values, as in --set {key}.{one}=…"
        raise ConfigError(
            f"--set {key}: would drop other settings of the file: {shown}; {way_out}"
        )


def assign(values: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A new nested dict with `value` at `path`; groups on the way are made, or replaced where they are no groups."""
    if len(path) == 1:
        return {**values, path[0]: value}
    group = values.get(path[0])
    return {**values, path[0]: assign(group if isinstance(group, dict) else {}, path[1:], value)}


def _parse(
    text: str, name: str, *, folder: Path, path: KeyPath = ()
) -> tuple[Any, dict[KeyPath, str]]:
    """Plain values, and the places of all keys; `path` is where the text will stand."""
    try:
        reader = _Reader(text, name, folder)
        node = reader.get_single_node()
        return None if node is None else reader.read(node, path), reader.places
    # unlike other errors of YAML it has a position and no line
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place, character = _place(name, line), f"U+{error.character:04X}"
        raise ConfigError(
            f"{place}: holds the character {character}, which YAML does not allow; remove it"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        context, problem = getattr(error, "context", None), getattr(error, "problem", None)
        reason = ", ".join(part for part in (context, problem) if part)
        reason = reason or str(error).splitlines()[0]
        # in our messages, "unexpected" would mean a fault of boxseg
        reason = reason.replace("unexpected ", "")
        place = _place(name, mark.line + 1) if mark else name
        hint = "check indentation, colons, quotes and brackets there"
        raise ConfigError(f"{place}: not valid YAML: {reason}; {hint}") from error


class _Reader(yaml.SafeLoader):
    """Reads the plain values of YAML 1.2 (`on` and `off` are words, `1e-4` is a number, no dates) and their lines."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (filled below, as PyYAML does)

    def __init__(self, text: str, source_name: str, folder: Path) -> None:
        super().__init__(text)
        self.places: dict[KeyPath, str] = {}
        self._source_name = source_name
        self._folder = folder
        self._depth = 0
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """PyYAML's own, which calls itself for what is inside; refuses what is deeper than settings can be."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._too_deep(self.peek_event().start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._values += 1
        # by an alias a composed node can hold itself
        if len(path) > MAX_DEPTH:
            raise self._too_deep(node.start_mark)
        if self._values > MAX_VALUES:
            raise ConfigError(
                f"{self.place(node.start_mark)}: the file has more than {MAX_VALUES} values with "
                "all aliases written out; write out the few that are needed"
            )
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
        return self._read_scalar(node, path)

    def place(self, mark: yaml.Mark) -> str:
        return _place(self._source_name, mark.line + 1)

    def _too_deep(self, mark: yaml.Mark) -> ConfigError:
        return ConfigError(
            f"{self.place(mark)}: nested too deeply, or an alias points at the group that holds "
            "it; write the values out"
        )

    def _read_scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        place, name = self.place(node.start_mark), ".".join(path)
        digits = sum(map(str.isdigit, node.value))
        if node.tag.endswith(":int") and digits > MAX_DIGITS:
            rule = f"whole numbers have {MAX_DIGITS} at most"
            raise ConfigError(f"{place}: {name} has {digits} digits; {rule}")
        try:
            value = self.construct_object(node)
        except (
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
        ) as error:  # `!!int word`, `!!timestamp word`
            kind = node.tag.rpartition(":")[2]
            raise ConfigError(
                f"{place}: {name} is not of the kind {kind} that it is marked as; leave the mark out"
            ) from error
        # marks such as !!binary and !!timestamp make other kinds
        if not isinstance(value, str | int | float | None):
            kind = type(value).__name__
            rule = "settings are numbers, words and lists"
            raise ConfigError(f"{place}: {name} is a {kind}, and {rule}")
        if not isinstance(value, str):
            return value
        if len(value) > MAX_TEXT:
            rule = f"settings have {MAX_TEXT} at most"
            raise ConfigError(f"{place}: {name} has {len(value)} characters; {rule}")
        if control := _CONTROL.search(value):
            raise ConfigError(
                f"{place}: {name} holds the character U+{ord(control[0]):04X}, which no setting can; remove it"
            )
        if secret := find_secret(value):
            raise ConfigError(f"{place}: {name}: {secret}; {ENVIRONMENT}")
        setting = _setting_name(path)
        if setting == "tracking.uri" and re.match(rf"{SQLITE}[^/:]", value):
            return SQLITE + self._absolute(value.removeprefix(SQLITE), f"{place}: {name}")
        is_path = setting in _PATHS and not (setting == "model.start_from" and names_run(value))
        return self._absolute(value, f"{place}: {name}") if is_path else value

    def _read_mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        taken_over: dict[str, Any] = {}
        # wherever << stands among them, a group's own settings win over it
        for key_node, value_node in node.value:
            if key_node.value == MERGE:
                taken_over |= self._read_merged(value_node, path)
        for key_node, value_node in node.value:
            key, mark = key_node.value, key_node.start_mark
            if key == MERGE:
                continue
            if not isinstance(key, str) or len(key) > MAX_TEXT or _CONTROL.search(key):
                raise ConfigError(
                    f"{self.place(mark)}: a setting's name must be a word, not a list, a mapping or a text"
                )
            if key in values:
                again = f"{'.'.join((*path, key))} is given twice, first on line {lines[key]}"
                raise ConfigError(f"{self.place(mark)}: {again}; keep one of them")
            lines[key] = mark.line + 1
            if key in taken_over:  # what it took over at this place, or below it, is replaced
                self._forget_places((*path, key))
            self.places[(*path, key)] = self.place(mark)
            values[key] = self.read(value_node, (*path, key))
        return taken_over | values

    def _read_merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """The settings of `<<: *OTHER`; of a list of mappings the first one that has a key gives its value."""
        mappings = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values: dict[str, Any] = {}
        for mapping in reversed(mappings):
            if not isinstance(mapping, yaml.MappingNode):
                raise ConfigError(
                    f"{self.place(mapping.start_mark)}: << takes over the settings of a group, and this is none; "
                    "mark a group with &NAME and write <<: *NAME"
                )
            for key_node, _ in mapping.value:
                self._forget_places((*path, str(key_node.value)))
            values |= self._read_mapping(mapping, path)
        return values

    def _forget_places(self, path: KeyPath) -> None:
        for other in [other for other in self.places if other[: len(path)] == path]:
            del self.places[other]

    def _absolute(self, value: str, place: str) -> str:
        if not value:  # as a path it would be the folder itself
            raise ConfigError(f"{place} is empty; name a path, or leave the setting out")
        # URIs, and the words that `model.weights` takes
        if "://" in value or value in ("auto", "imagenet", "none"):
            return value
        try:
            path = self._folder / Path(value).expanduser()
        except RuntimeError as error:
            reason = "the home of an unknown user"
            raise ConfigError(f"{place} is {value}, {reason}; write the whole path") from error
        # links keep their names, unless `..` has to be followed through them
        return str(path.resolve() if ".." in path.parts else path)


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that are no text; they would reach terminals and names of files."""


def _place(source_name: str, line: int) -> str:
    return source_name if source_name.startswith("--set") else f"{source_name}:{line}"


FLOAT = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)"
)
"""Numbers with a point or an exponent, as YAML 1.2 has them."""
FLOAT_FIRST = list("-+0123456789.")
"""The characters that they begin with."""

# the third are the letters that values begin with, by which PyYAML looks patterns up
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", FLOAT, FLOAT_FIRST),
):
    _Reader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )


def names_run(start: str) -> bool:
    """Whether a `model.start_from` is the id of a run or `best:SWEEP`, not a path with a slash or such an ending."""
    return start.startswith("best:") or ("/" not in start and not start.endswith(STATE_DICTS))


def _setting_name(path: KeyPath) -> str:
    """The dotted name of what stands at `path`; for a value in a sweep's space or points, of the setting it is for."""
    if path[:2] == ("sweep", "points"):
        path = path[3:]  # after the number in the list
    elif path[:2] == ("sweep", "space") and len(path) > 4:
        # (sweep, space, NAME, choice, number in the list, …), and so on
        names = {"choice": (path[2], *path[5:]), "together": path[5:], "when": path[4:5]}
        path = names.get(path[3], path)
    return ".".join(path)


def _read_text(path: Path) -> str:
    try:
        # with or without the mark that editors on Windows begin files with
        return read_plain(path, limit=MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        beside = sorted(other.name for other in path.parent.glob("*.y*ml"))
        hint = "give the path of an experiment file"
        if beside:
            more = f" and {len(beside) - SHOWN} more" if len(beside) > SHOWN else ""
            hint = f"{path.parent} has: {', '.join(beside[:SHOWN])}{more}"
        raise ConfigError(f"{path}: no such file; {hint}") from error
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text, byte {error.start}"
        raise ConfigError(f"{path}: cannot be read ({reason}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({reason_of(error)}); give the path of an experiment file"
        ) from error
