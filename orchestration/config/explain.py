"""Which settings exist, and clear sentences about those that were written wrongly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from boxseg.config.method import Config
from boxseg.errors import ConfigError
from orchestration.config.source import KeyPath, Source

MAX_SENTENCES = 20
"""Most wrong settings that are explained at once."""


def setting_names(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings and groups: `name`, `qam`, `qam.k_top`, …"""
    for name, field in model.model_fields.items():
        yield prefix + name
        group = group_of(field)
        if group is not None:
            yield from setting_names(group, f"{prefix}{name}.")


def find_field(model: type[Config], path: Sequence[str]) -> FieldInfo | None:
    """The field that a path of keys leads to; None where there is no such setting."""
    field = model.model_fields.get(path[0])
    for name in path[1:]:
        group = group_of(field)
        field = None if group is None else group.model_fields.get(name)
    return field


def group_of(field: FieldInfo | None) -> type[Config] | None:
    """The group of settings that a field is or can be; None for plain settings."""
    if field is None:
        return None
    # the annotation itself, or a member of a union
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None


def unknown_setting(name: str, model: type[Config]) -> str:
    """`qam.k_topp is not a setting; did you mean qam.k_top?`, or the names there are."""
    known = list(setting_names(model))
    # reversed, so that the first of names with the same ending stays
    by_last_part = {setting.rpartition(".")[2]: setting for setting in reversed(known)}
    # a name written wrongly, or else a right one in another group
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75) or [
        by_last_part[last]
        for last in difflib.get_close_matches(name.rpartition(".")[2], by_last_part, 1, 0.75)
    ]
    if near:
        return f"{name} is not a setting; did you mean {near[0]}?"
    parent = name.rpartition(".")[0]
    group = group_of(find_field(model, parent.split(".")))
    if group is not None:
        return f"{name} is not a setting; {parent} has: {', '.join(group.model_fields)}"
    return f"{name} is not a setting; an experiment file has: {', '.join(model.model_fields)}"


def explain(error: ValidationError, source: Source, model: type[Config]) -> ConfigError:
    """One line for each wrong setting: where it stands, its value, the rule, and what to do."""
    faults: dict[KeyPath, list[Any]] = {}
    for item in error.errors():
        faults.setdefault(_key_path(item, source.values), []).append(item)
    # a fault inside a group says more than one about the group
    groups = {path[:length] for path in faults for length in range(len(path))}
    deepest = [path for path in faults if path not in groups]
    order = {path: number for number, path in enumerate(source.places)}
    # in the order of the file; what was not written, as a missing name, comes first
    deepest.sort(key=lambda path: order.get(path, -1))
    lines = [_sentence(path, faults[path], source, model) for path in deepest[:MAX_SENTENCES]]
    if len(deepest) > MAX_SENTENCES:
        lines.append(f"{source.name}: {len(deepest) - MAX_SENTENCES} more settings are wrong")
    return ConfigError("\n  ".join(lines))


def as_yaml(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _key_path(item: Any, values: Any) -> KeyPath:
    """The path as written: pydantic's without its tags for members of unions."""
    path: list[str] = []
    for part in item["loc"]:
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_list or (isinstance(values, dict) and part in values):
            values = values[part]
            path.append(str(part))
    # it is not among the values, so its name is still to come
    if item["type"] == "missing" and isinstance(item["loc"][-1], str):
        path.append(item["loc"][-1])
    return tuple(path)


def _sentence(path: KeyPath, items: list[Any], source: Source, model: type[Config]) -> str:
    name, item, place = ".".join(path), items[0], source.place(path)
    kinds = {item["type"] for item in items}
    if "value_error" in kinds:
        return _rule_sentence(path, str(item["ctx"]["error"]), source)
    # there is such a setting, so its dots were written within one key
    if "extra_forbidden" in kinds and find_field(model, name.split(".")) is not None:
        group, _, last = name.rpartition(".")
        return f"{place}: {name} is written with a dot; nest it, as in `{group}: {{{last}: …}}`"
    if "extra_forbidden" in kinds:
        return f"{place}: {unknown_setting(name, model)}"
    if "missing" in kinds and isinstance(item["loc"][-1], str):
        return f"{place}: {name} is missing; add it"
    # each member of a union complains by itself
    rules = dict.fromkeys(_rule(item, find_field(model, path)) for item in items)
    return f"{place}: {name} is {as_yaml(item['input'])}; it must be {', or '.join(rules)}"


def _rule_sentence(path: KeyPath, text: str, source: Source) -> str:
    """A validator's own sentence, with the places where the settings that it names were written."""
    places = []
    for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", text):
        named = path + tuple(word.split("."))
        if named in source.places:
            places.append(source.places[named])
    place = ", ".join(dict.fromkeys(places)) or source.place(path)
    name = ".".join(path)
    return f"{place}: {name}: {text}" if name and not text.startswith(name) else f"{place}: {text}"


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string_pattern_mismatch": "letters, digits, and _ . - after the first, to name a folder",
    "string_type": "text (quote it)",
    "path": "a path",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "too_short": "a list with at least 1 value",
}
"""Prefix of pydantic's name for a fault -> what would be right."""


def _rule(item: Any, field: FieldInfo | None) -> str:
    kind, limits = item["type"], _allowed_range(field)
    is_limit = kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
    if is_limit and limits:
        return limits
    if kind in ("model_type", "model_attributes_type"):
        group = group_of(field)
        if group is None:
            return "a group of settings"
        return f"a group with the settings {', '.join(group.model_fields)}"
    if kind == "literal_error":
        # pydantic lists them in one text, as in `'a', 'b' or 'c'`
        names = re.findall(r"'([^']+)'", item["ctx"]["expected"])
        near = difflib.get_close_matches(str(item["input"]), names, n=1)
        listing = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        return f"{listing} (did you mean {near[0]}?)" if near else listing
    if kind == "too_long" and item["ctx"]["max_length"] > 2 and field is None:
        return f"a list of at most {item['ctx']['max_length']} values"
    if kind in ("missing", "too_long"):
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        lengths = [len(get_args(kind)) for kind in kinds if get_origin(kind) is tuple]
        # domains, which have no field, have two ends
        return f"a list of {lengths[0] if lengths else 2} values"
    for start, words in _KINDS.items():
        if kind.startswith(start):
            return f"{words}, {limits}" if limits else words
    return re.sub(r"^(Input|String) should (be |have )?", "", item["msg"])


def _allowed_range(field: FieldInfo | None) -> str:
    """Limits of a number in words, as in `0 or more and below 1`; empty where there are none."""
    words = []
    for limit in field.metadata if field is not None else ():
        match limit:
            case Ge(ge=low):
                words.append(f"{low:g} or more")
            case Gt(gt=low):
                words.append(f"above {low:g}")
            case Le(le=high):
                words.append(f"at most {high:g}")
            case Lt(lt=high):
                words.append(f"below {high:g}")
    return " and ".join(words)
