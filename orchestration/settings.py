"""What settings exist, and clear sentences about those that were written wrongly."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from boxseg.config import Config
from boxseg.errors import ConfigError
from orchestration.yaml_source import KeyPath, Source


def setting_names(model: type[Config], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, groups left out: `name`, `qam.k_top`, …"""
    for name, field in model.model_fields.items():
        group = own_group(field)
        if group is None:
            yield prefix + name
        else:
            yield from setting_names(group, f"{prefix}{name}.")


def find_field(model: type[Config], path: Sequence[str]) -> FieldInfo | None:
    """The field that a path of keys leads to; None where there is no such setting."""
    field = model.model_fields.get(path[0])
    for name in path[1:]:
        group = None if field is None else next(_groups(field.annotation), None)
        field = None if group is None else group.model_fields.get(name)
    return field


def own_group(field: FieldInfo) -> type[Config] | None:
    """The settings group that a field always is; None for plain settings and for those with an alternative."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


def fill_empty_groups(values: dict[str, Any], model: type[Config]) -> dict[str, Any]:
    """A new nested dict in which a group without any entry (`qam:` and nothing below) is an empty group."""
    filled = dict(values)
    for name, field in model.model_fields.items():
        group = own_group(field)
        if group is None or name not in filled:
            continue
        if filled[name] is None:
            filled[name] = {}
        elif isinstance(filled[name], dict):
            filled[name] = fill_empty_groups(filled[name], group)
    return filled


def closest(word: str, known: Sequence[str]) -> str | None:
    """The known name that a misspelt one most likely means; a last part alone finds its full name."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if found:
        return found[0]
    tails = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(word.rpartition(".")[2], list(tails), n=1, cutoff=0.75)
    return tails[found[0]] if found else None


def unknown_setting(name: str, model: type[Config]) -> str:
    """`qam.k_topp is not a setting; did you mean qam.k_top?`, or the names there are."""
    parent, _, last = name.rpartition(".")
    group: type[Config] | None = model
    if parent:
        field = find_field(model, parent.split("."))
        group = None if field is None else next(_groups(field.annotation), None)
    siblings = list(group.model_fields) if group is not None else []
    near = next(iter(difflib.get_close_matches(last, siblings, n=1)), None)
    elsewhere = closest(last if siblings else name, list(setting_names(model)))
    guess = ".".join(part for part in (parent, near) if part) if near else elsewhere
    if guess is not None:
        return f"{name} is not a setting; did you mean {guess}?"
    return f"{name} is not a setting; {parent or 'an experiment file'} has: {', '.join(siblings or model.model_fields)}"


def explain(error: ValidationError, source: Source, model: type[Config]) -> ConfigError:
    """One line for each wrong setting: where it stands, what it is, the rule, the way out."""
    found: dict[KeyPath, list[dict[str, Any]]] = {}
    for item in error.errors():
        found.setdefault(_key_path(item, source.values), []).append(dict(item))
    deepest = {path: items for path, items in found.items() if not _has_deeper(path, found)}
    order = {path: number for number, path in enumerate(source.places)}
    paths = sorted(deepest, key=lambda path: order.get(path, -1))
    return ConfigError("\n".join(_sentence(path, deepest[path], source, model) for path in paths))


def allowed_range(field: FieldInfo) -> str:
    """Limits of a number in words, as in `0 or more and below 1`; empty where there are none."""
    words = []
    for limit in field.metadata:
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


def show(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _groups(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType):
        for part in get_args(annotation):
            yield from _groups(part)


def _key_path(item: Any, values: Any) -> KeyPath:
    """The path as written: pydantic's without its tags for members of unions."""
    path: list[str] = []
    for part in item["loc"]:
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_list or (isinstance(values, dict) and part in values):
            values = values[part]
            path.append(str(part))
    if item["type"] == "missing" and isinstance(item["loc"][-1], str):
        path.append(item["loc"][-1])
    return tuple(path)


def _has_deeper(path: KeyPath, found: dict[KeyPath, Any]) -> bool:
    """Whether an error inside this setting says more than the error at the setting itself."""
    at_itself_only_kinds = all(item["type"] in _KINDS or item["type"] == "literal_error" for item in found[path])
    return at_itself_only_kinds and any(len(other) > len(path) and other[: len(path)] == path for other in found)


def _sentence(path: KeyPath, items: list[dict[str, Any]], source: Source, model: type[Config]) -> str:
    name, item = ".".join(path), items[0]
    kinds = {item["type"] for item in items}
    if "value_error" in kinds:
        return _rule_sentence(path, str(item["ctx"]["error"]), source)
    place = source.place(path)
    if "extra_forbidden" in kinds:
        if find_field(model, name.split(".")) is not None:
            group, _, last = name.rpartition(".")
            return f"{place}: {name} is written with a dot; nest it, as in `{group}: {{{last}: …}}`"
        return f"{place}: {unknown_setting(name, model)}"
    if "missing" in kinds and isinstance(item["loc"][-1], str):
        return f"{place}: {name} is missing; add it"
    rules = list(dict.fromkeys(_rule(item, path, model) for item in items))
    return f"{place}: {name} is {show(_value_at(source.values, path))}; it must be {', or '.join(rules)}"


def _rule_sentence(path: KeyPath, text: str, source: Source) -> str:
    """A validator's own sentence, placed where the settings that it names were written."""
    words = [tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_]+)*", text)]
    places = [source.places[path + word] for word in words if path + word in source.places]
    place = ", ".join(dict.fromkeys(places)) or source.place(path)
    name = ".".join(path)
    return f"{place}: {name}: {text}" if name and not text.startswith(name) else f"{place}: {text}"


_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (quote it)",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
}


def _rule(item: dict[str, Any], path: KeyPath, model: type[Config]) -> str:
    kind, field = item["type"], find_field(model, path)
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return (field and allowed_range(field)) or item["msg"].removeprefix("Input should be ")
    if kind == "literal_error":
        names = re.findall(r"'([^']+)'", item["ctx"]["expected"])
        near = difflib.get_close_matches(str(item["input"]), names, n=1)
        listing = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        return f"{listing} (did you mean {near[0]}?)" if near else listing
    if kind in ("model_type", "model_attributes_type"):
        group = None if field is None else next(_groups(field.annotation), None)
        return f"a group with the settings {', '.join(group.model_fields)}" if group else "a group of settings"
    if kind in ("missing", "too_short", "too_long"):
        return _list_rule(item, field)
    if kind in _KINDS:
        limits = allowed_range(field) if field is not None else ""
        return f"{_KINDS[kind]}, {limits}" if limits else _KINDS[kind]
    return re.sub(r"^(Input|List|Tuple|String) should (be |have )?", "", item["msg"])


def _list_rule(item: dict[str, Any], field: FieldInfo | None) -> str:
    lengths = [len(get_args(field.annotation))] if field is not None and get_origin(field.annotation) is tuple else []
    count = item.get("ctx", {}).get("min_length") or item.get("ctx", {}).get("max_length")
    if "sweep" in item["loc"] and item["loc"][-2:-1] != ("choice",) and "choice" not in item["loc"]:
        return "two numbers, [low, high]"
    return f"a list of {lengths[0]} values" if lengths else f"a list with at least {count or 1} value"


def _value_at(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[int(part)] if isinstance(values, list) else values[part]
    return values
