"""The `config.yaml` of a run or sweep, with all of its settings: written, read back, listed by dotted name."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from boxseg.config.presets import METHODS, PROFILES
from boxseg.errors import ConfigError
from boxseg.files.writing import read_plain, reason_of
from orchestration.config.source import (
    FLOAT,
    FLOAT_FIRST,
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    Source,
)
from orchestration.config.spec import RunSpec
from orchestration.store.places import address_of, shown

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""LibYAML's, where PyYAML has it: a trial's settings take a tenth of the time."""


def dump_resolved(spec: RunSpec) -> str:
    """All settings as YAML that loads again to an equal spec, without `notify`: an address may hold a token."""
    values = _plain_values(spec)
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _plain_values(spec: RunSpec) -> dict[str, Any]:
    """All settings but `notify`, with addresses of stores as they were written."""
    values = spec.model_dump(mode="json", exclude={"notify"})
    # it will be read from other folders than this one
    values["storage"] = shown(spec.storage)
    for name, source in spec.data.files.items():
        places = {"images": shown(source.images), "annotations": shown(source.annotations)}
        values["data"][name] = places
    if spec.model.start_from is not None and (address := address_of(spec.model.start_from)):
        values["model"]["start_from"] = address
    return values


COPY_BACK = "put a copy back (MLflow keeps one as an artifact of the run), or start a new run"
"""Advice where a run's settings cannot be read."""


class _Dumper(DUMPER):
    """Writes values that are used twice in full, so that no reader has to trust an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Texts such as `1e9`, which PyYAML takes for no number, are quoted, as our reader takes them for one.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT})$"), FLOAT_FIRST)


def in_one_line(value: Any) -> str:
    """A setting's value as YAML on one line, however long."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9
    )
    return str(text).removesuffix("...\n").strip()  # YAML's end mark after a lone value


def commented_yaml(
    values: dict[str, Any],
    *,
    above: dict[str, str],
    behind: dict[str, str],
    prefix: str = "",
) -> Iterator[str]:
    """Lines of an experiment file with these values, and comments above or behind some (by dotted name)."""
    indent = "  " * prefix.count(".")
    for name, value in values.items():
        whole_name = prefix + name
        for line in textwrap.wrap(above.get(whole_name, ""), width=116 - len(indent)):
            yield f"{indent}# {line}"
        if not isinstance(value, dict) or whole_name in behind:
            comment = f"  # {behind[whole_name]}" if whole_name in behind else ""
            yield f"{indent}{name}: {in_one_line(value)}{comment}"
            continue
        if above and not prefix:
            yield ""  # an empty line before each group
        yield f"{indent}{name}:"
        yield from commented_yaml(value, above=above, behind=behind, prefix=f"{whole_name}.")


def find_origins(spec: RunSpec, source: Source) -> dict[str, str]:
    """Where each setting comes from: `file:line`, `--set key`, the preset that gives the value, or `default`."""
    presets = {
        # the method first, whose presets lie over those of the profile
        f"method {spec.method}": METHODS[spec.method],
        f"profile {spec.profile}": PROFILES[spec.profile],
    }
    origins = {}
    for name, _ in leaves(spec.model_dump(mode="json")):
        group, _, last = name.rpartition(".")
        by = [label for label, preset in presets.items() if last in preset.get(group, {})]
        origins[name] = source.places.get(tuple(name.split(".")), by[0] if by else "default")
    return origins


def read_resolved(path: Path) -> dict[str, Any]:
    """The settings in a run's `config.yaml`, as plain values; quicker than `load_run`, and nothing is validated.

    Raises:
        ConfigError: it is missing or damaged.
    """
    try:
        return parse_resolved(read_plain(path, limit=MAX_BYTES).decode())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is missing; {COPY_BACK}") from error
    except (OSError, ValueError) as error:
        # ConfigError would say "unexpected", the word for our own faults
        reason = " ".join(reason_of(error).replace("unexpected ", "").split())
        raise ConfigError(f"{path}: is damaged: {reason:.200}; {COPY_BACK}") from error


def parse_resolved(text: str) -> dict[str, Any]:
    """What `dump_resolved` wrote, as plain values.

    Raises:
        ValueError: the text is something else.
    """
    depth = 0
    try:
        # before it is loaded: loading calls itself for each group within a group
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                fault = "it has aliases, or groups within too many groups"
                raise ValueError(f"{fault}, which boxseg does not write")
        values = yaml.load(text, Loader=LOADER)
    # PyYAML has no error of its own for `!!bool word` and `!!timestamp word`
    except (yaml.YAMLError, LookupError, AttributeError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict) or not _is_plain(values):
        raise ValueError("it is no mapping of settings")
    return values


def _is_plain(values: Any) -> bool:
    """Whether groups in nested values have texts as names, and whole numbers fit in 64 bits."""
    if isinstance(values, list):
        return all(map(_is_plain, values))
    if not isinstance(values, dict):
        return not isinstance(values, int) or abs(values) < 10**MAX_DIGITS
    return all(isinstance(name, str) and _is_plain(value) for name, value in values.items())


_WHOLE = ("sweep.space", "sweep.against")


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of all settings in nested values; parts of `sweep` with free names stay whole."""
    for name, value in values.items():
        if isinstance(value, dict) and prefix + name not in _WHOLE:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def params_of(resolved: dict[str, Any]) -> dict[str, str | int | float | bool]:
    """The settings of a resolved configuration by dotted name, those of a sweep too; lists and nulls as text."""
    params: dict[str, str | int | float | bool] = {}
    for name, value in leaves(resolved):
        is_plain = isinstance(value, str | int | float)
        params[name] = value if is_plain else "null" if value is None else str(value)
    return params
