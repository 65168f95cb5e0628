"""Typed settings of runs and sweeps, and the YAML that fills them; importable without torch and ray."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from boxseg.config import BoxSegConfig, Config
from boxseg.errors import ConfigError
from orchestration import settings
from orchestration.domains import AnyDomain, Choice, Domain, corners, domain_kind, probe_values
from orchestration.yaml_source import KeyPath, Source, absolute_paths, assign, override, parse_override, read_source

Runner = Literal["auto", "ray_train", "inline"]
METRICS = (
    *(f"val/mask_{stat}" for stat in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")),
    *(f"val/box_{stat}" for stat in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")),
    "val/teacher_mask_ap",
    "val/student_mask_ap",
)
"""Metrics of the evaluation that can decide a sweep, all shares in [0, 1]."""


class ResourcesConfig(Config):
    """What a run needs."""

    workers: int = Field(1, ge=1)
    """Training processes; each takes an equal share of the batch."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores per worker; also its number of torch threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs per worker."""
    runner: Runner = "auto"
    """ray_train: Ray Train workers; inline: the loop runs in the process that asks for it, the command itself for
    `train`, a reused Tune actor for a trial; auto: inline for one-worker CPU trials on this machine, else ray_train."""
    address: str | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if set, else a Ray that is started here and ends with us."""

    @model_validator(mode="after")
    def _check_inline(self) -> ResourcesConfig:
        if self.runner == "inline" and self.workers > 1:
            raise ValueError(f"runner inline has one worker, but workers is {self.workers}; use runner: ray_train")
        return self


class SweepConfig(Config):
    """What is varied, and how trials are chosen and stopped."""

    metric: str = "val/mask_ap"
    """Metric of the evaluation that decides."""
    mode: Literal["max", "min"] = "max"
    """Whether a larger or a smaller metric is better."""
    trials: int = Field(8, ge=1)
    """Number of sampled settings; a grid ignores it. Each is run once per seed."""
    search: Literal["grid", "random", "tpe"] = "tpe"
    """How settings are chosen."""
    trial_scheduler: Literal["none", "asha"] = "asha"
    """How weak trials are stopped early."""
    burn_in: float = Field(0.25, gt=0, le=1)
    """Share of `train.steps` before which no trial is stopped."""
    reduction: float = Field(3, gt=1)
    """ASHA keeps about one in so many trials at each rung."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at the same time; null: as many as the resources hold."""
    seeds: list[int] = Field([0], min_length=1)
    """Values of train.seed."""
    space: dict[str, Domain] = Field(default_factory=dict)
    """Setting name (as in `qam.iou_thr`) -> domain."""

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        if metric not in METRICS:
            near = settings.closest(metric, METRICS)
            guess = f"did you mean {near}? " if near else ""
            raise ValueError(f"{metric} is not measured; {guess}there are {', '.join(METRICS)}")
        return metric

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat a value; a repeated run gives nothing new")
        for name, domain in self.space.items():
            if self.search == "grid" and not isinstance(domain, Choice):
                raise ValueError(
                    f"search grid tries every value, but space.{name} is {domain_kind(domain)}; "
                    "list its values with choice, or use search: random or tpe"
                )
        return self


class TrackingConfig(Config):
    """Where MLflow keeps runs."""

    uri: str | None = None
    """MLflow tracking URI; null: an SQLite file under `storage`."""


class RunSpec(BoxSegConfig):
    """Everything one run needs."""

    name: str = "boxseg"
    """Name of the experiment and of its folder: letters, digits, and _ . - inside."""
    resources: ResourcesConfig = ResourcesConfig()
    storage: Path = Path("runs")
    """Folder that every node can reach."""
    tracking: TrackingConfig = TrackingConfig()

    _sparse: dict[str, Any] = PrivateAttr(default_factory=dict)
    """The settings as given, before presets; trials start from these so that profile and method can vary."""

    @model_validator(mode="wrap")
    @classmethod
    def _keep_sparse(cls, values: Any, handler: ModelWrapValidatorHandler[RunSpec]) -> RunSpec:
        spec = handler(values)
        if isinstance(values, dict):
            spec._sparse = copy.deepcopy(values)
        return spec

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"{name!r} cannot name a folder; use letters, digits, and _ . - after the first")
        return name

    @field_validator("storage", mode="before")
    @classmethod
    def _check_storage(cls, storage: Any) -> Any:
        if isinstance(storage, str) and "://" in storage:
            raise ValueError(f"{storage} is a URI; runs need a folder, so mount the store and give its path")
        return storage

    @model_validator(mode="after")
    def _check_shares(self) -> RunSpec:
        if self.train.batch_size % self.resources.workers:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} cannot be shared by resources.workers "
                f"{self.resources.workers}; make it a multiple"
            )
        return self

    def __eq__(self, other: object) -> bool:
        """Equal settings are equal, however they were written."""
        return type(self) is type(other) and self.__dict__ == other.__dict__


class SweepSpec(RunSpec):
    """A run's settings plus what is varied."""

    sweep: SweepConfig = SweepConfig()

    def base(self) -> RunSpec:
        """The run in the middle: these settings, nothing varied."""
        return RunSpec.model_validate(_without_sweep(self._sparse))

    def trial(self, values: dict[str, Any], seed: int) -> RunSpec:
        """The run with `values` (setting name -> value) in place; profile and method presets apply anew.

        Raises:
            ConfigError: a name is no setting, or the values are not possible together.
        """
        sparse = _without_sweep(self._sparse)
        places: dict[KeyPath, str] = {}
        for name, value in {**values, "train.seed": seed}.items():
            if settings.find_field(RunSpec, name.split(".")) is None:
                raise ConfigError(f"sweep.space: {settings.unknown_setting(name, RunSpec)}")
            plain = value.item() if hasattr(value, "item") else value
            sparse = assign(sparse, name.split("."), plain)
            places[tuple(name.split("."))] = f"sweep.space {name}"
        return build_spec(RunSpec, Source("sweep.space", sparse, places))


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read the settings of one run; a `sweep` section is ignored.

    Args:
        path: Experiment file.
        overrides: `key=value` texts of `--set`, later ones win.

    Raises:
        ConfigError: anything wrong with file or overrides, one line for each fault.
    """
    source = read_settings(path, overrides)
    for key, place in source.places.items():
        if key[0] == "sweep" and place.startswith("--set"):
            raise ConfigError(f"{place}: a single run has no sweep; leave it out, or use `boxseg sweep`")
    return build_spec(RunSpec, Source(source.name, _without_sweep(source.values), source.places))


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep and check that every trial it can ask for is possible.

    Args:
        path: Experiment file with a `sweep` section.
        overrides: `key=value` texts of `--set`, later ones win.

    Raises:
        ConfigError: anything wrong with file or overrides, one line for each fault.
    """
    source = read_settings(path, overrides)
    spec = build_spec(SweepSpec, source)
    check_space(spec, source)
    return spec


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Source:
    """File and overrides as one nested dict with absolute paths; nothing is validated yet.

    Relative paths belong to the file that names them; in `--set`, and for the default `storage`, to the current folder.
    """
    source = read_source(path)
    values = absolute_paths(settings.fill_empty_groups(source.values, SweepSpec), path.absolute().parent)
    source = Source(source.name, values, source.places)
    for text in overrides:
        keys, value = parse_override(text)
        nested = settings.fill_empty_groups(assign({}, keys, value), SweepSpec)
        placed: Any = absolute_paths(nested, Path.cwd())
        for key in keys:
            placed = placed[key]
        source = override(source, keys, placed)
    source.values.setdefault("storage", str(Path.cwd() / "runs"))
    return source


Spec = TypeVar("Spec", bound=RunSpec)


def build_spec(model: type[Spec], source: Source) -> Spec:
    """Validate nested values; faults come as one ConfigError with a line each."""
    try:
        return model.model_validate(source.values)
    except ValidationError as error:
        raise settings.explain(error, source, model) from error


def check_space(spec: SweepSpec, source: Source) -> None:
    """Refuse a space with names that are no settings, or with values that a run would refuse."""
    space = spec.sweep.space
    if not space and (len(spec.sweep.seeds) == 1 or spec.sweep.search != "grid"):
        raise ConfigError(
            f"{source.name}: sweep.space is empty, so all trials would be the same; add settings to vary, "
            "or use `boxseg train` (to repeat one setting over sweep.seeds: search: grid)"
        )
    for name, domain in space.items():
        place = source.place(("sweep", "space", name))
        _check_space_name(name, place)
        for value in probe_values(domain):
            _check_probe(spec, name, value, place, domain)
    for values in corners(space):
        try:
            spec.trial(values, seed=spec.sweep.seeds[0])
        except ConfigError as error:
            together = ", ".join(f"{name} {settings.show(value)}" for name, value in values.items())
            raise ConfigError(f"{source.place(('sweep', 'space'))}: a trial could get {together}; {error}") from error


def dump_resolved(spec: RunSpec) -> str:
    """All settings as YAML that loads again to an equal spec."""
    values = spec.model_dump(mode="json")
    values["storage"] = str(spec.storage.absolute())
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def flatten(spec: RunSpec) -> dict[str, str | int | float | bool]:
    """Dotted setting name -> value, `sweep` left out; lists and nulls as text."""
    return dict(_leaves(spec.model_dump(mode="json", exclude={"sweep"}), ""))


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, str | int | float | bool]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | int | float)
            yield prefix + name, value if plain else "null" if value is None else str(value)


def _without_sweep(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "sweep"}


_FIXED = ("name", "storage", "resources", "tracking", "train.seed")
"""What no trial may change: all trials share it, or the sweep sets it itself."""


def _check_space_name(name: str, place: str) -> None:
    field = settings.find_field(RunSpec, name.split("."))
    if field is None:
        raise ConfigError(f"{place}: sweep.space: {settings.unknown_setting(name, RunSpec)}")
    if settings.own_group(field) is not None:
        raise ConfigError(f"{place}: sweep.space: {name} is a group; vary its settings one by one, as in {name}.NAME")
    if any(name == fixed or name.startswith(f"{fixed}.") for fixed in _FIXED):
        hint = "list its values in sweep.seeds" if name == "train.seed" else "all trials share it; set it once above"
        raise ConfigError(f"{place}: sweep.space: {name} cannot vary; {hint}")


def _check_probe(spec: SweepSpec, name: str, value: Any, place: str, domain: AnyDomain) -> None:
    """Refuse a value that the setting itself cannot take; rules across settings are left to the corners."""
    keys = tuple(name.split("."))
    values = assign(_without_sweep(spec._sparse), keys, value)
    try:
        RunSpec.model_validate(values)
    except ValidationError as error:
        own = [line for line in error.errors() if line["loc"][: len(keys)] == keys]
        if not own:
            return
        own_source = Source(place, values)
        own_error = ValidationError.from_exception_data(error.title, [_rebuilt(line) for line in own])
        raise ConfigError(f"{settings.explain(own_error, own_source, RunSpec)} (in sweep.space: {domain})") from error


def _rebuilt(line: Any) -> Any:
    known = {"type": line["type"], "loc": line["loc"], "input": line["input"]}
    return {**known, "ctx": line["ctx"]} if "ctx" in line else known
