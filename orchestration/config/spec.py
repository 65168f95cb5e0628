"""Typed settings of runs and sweeps, and the YAML that fills them; importable without torch and ray."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    NonNegativeInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from boxseg.config.criterion import Criterion, Mode
from boxseg.config.method import BoxSegConfig, Config
from boxseg.errors import ConfigError
from orchestration.config.domain import Choice, Domain, Together, domain_kind
from orchestration.config.explain import as_yaml, explain
from orchestration.config.notify import NotifyConfig
from orchestration.config.points import whole_points
from orchestration.config.source import Source, assign, override, read_source
from orchestration.config.space import count_settings, names_of, samples
from orchestration.config.space_checks import check_names
from orchestration.secret_text import ENVIRONMENT, find_secret
from orchestration.store.places import storage_folder

Runner = Literal["auto", "ray_train", "inline"]
Metric = Literal[
    "val/mask_ap",
    "val/mask_ap50",
    "val/mask_ap75",
    "val/mask_ap_small",
    "val/mask_ap_medium",
    "val/mask_ap_large",
    "val/box_ap",
    "val/teacher_mask_ap",
    "val/student_mask_ap",
    "qam/pseudo_iou",
    "health/mask_fill",
    "health/box_likeness",
]
Cost = Literal["cost/step_s", "cost/memory_mb"]
COSTS: tuple[str, ...] = get_args(Cost)
"""What training takes: median time of an update [s], and the most memory that the process held [MiB]."""
Aim = Literal[Metric, Cost]
NEEDS_NO_MASKS: tuple[str, ...] = ("val/box_ap", "health/mask_fill", "health/box_likeness", *COSTS)
"""Metrics of validation images whose masks are not drawn."""


def _refuse_secret(value: str | None) -> str | None:
    """Refuse secrets in settings that are made in code; files and `--set` are checked as they are read."""
    if value is not None and (secret := find_secret(value)):
        raise ValueError(f"{secret}; {ENVIRONMENT}")
    return value


class ResourcesConfig(Config):
    """What a run needs."""

    workers: int = Field(1, ge=1)
    """Training processes; each takes an equal share of the batch."""
    min_workers: int | None = Field(None, ge=1)
    """A run or trial goes on with this many of them while there is no place for all; null: only with all."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores per worker; also its number of torch threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs per worker."""
    price_per_gpu_hour: float | None = Field(None, gt=0)
    """What a GPU costs in an hour, in any currency; plans and reports of sweeps then show prices."""
    runner: Runner = "auto"
    """ray_train: Ray Train workers; inline: the loop runs in the process that asks for it, the command itself for
    `train`, which then needs no Ray, a reused Tune actor for a trial; auto: inline for one worker on the CPU cores of
    this machine, else ray_train."""
    address: str | None = None
    """Address of a running Ray cluster; null: RAY_ADDRESS if set, else a Ray that is started here and ends with us."""

    _check_address = field_validator("address")(_refuse_secret)

    @model_validator(mode="after")
    def _check_together(self) -> ResourcesConfig:
        if self.runner == "inline" and self.workers > 1:
            has = f"runner inline has one worker, but workers is {self.workers}"
            raise ValueError(f"{has}; use runner: ray_train")
        if self.least_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than workers {self.workers}; lower it"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker {self.gpus_per_worker:g} is not possible: give whole GPUs, or a part of one"
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs of a run."""
        return self.workers * self.gpus_per_worker

    def price_of(self, gpu_h: float) -> float | None:
        """What these GPU hours cost; None where no price is known."""
        return None if self.price_per_gpu_hour is None else gpu_h * self.price_per_gpu_hour

    @property
    def least_workers(self) -> int:
        """Workers without which a run does not start."""
        return self.min_workers or self.workers


NOT_OFFERED = {
    "bohb": "Ray's needs hpbandster, which comes without wheels (last release 2018); "
    "search: tpe with trial_scheduler: hyperband joins the same two ideas",
    "pbt": "on runs as short as ours it gained nothing over random settings, and its winner is a schedule "
    "that no experiment file can say (docs/sweeps.md has the numbers); use trial_scheduler: asha, hyperband or median",
    "nsga2": "it breeds generations of tens of trials; search: tpe looks for the front of several metrics with fewer",
}
"""Searches and schedulers that people may look for, and why boxseg does not offer them."""


MAX_TRIALS = 1_000_000
"""Most trials of a sweep: a hundred times what was measured."""


class SweepConfig(Config):
    """What is varied, and how trials are chosen and stopped."""

    metric: Metric = "val/mask_ap"
    """Metric of the evaluation that decides between evaluations, trials and settings; all are shares in [0, 1]."""
    mode: Mode = "max"
    """Whether a larger or a smaller metric is better."""
    against: dict[Aim, Mode] = Field(default_factory=dict)
    """One or two metrics to weigh `metric` against, each with its mode, as in `{cost/step_s: min}`: tpe looks for the
    settings that no other beats in all of them. Where one trial has to be the best, `metric` decides."""
    trials: int = Field(8, ge=1)
    """Number of sampled settings, or all there are if that is fewer; a grid ignores it. Each is run once per seed."""
    search: Literal["grid", "random", "tpe"] = "tpe"
    """How settings are chosen."""
    trial_scheduler: Literal["none", "asha", "hyperband", "median"] = "asha"
    """How weak trials are stopped early; hyperband: ASHA in brackets that begin later and later; median: what is worse
    than the median of the other trials' running means."""
    burn_in: float = Field(0.25, gt=0, le=1)
    """Share of `train.steps` before which no trial is stopped."""
    reduction: float = Field(3, gt=1)
    """ASHA and HyperBand keep about one in this many trials at each rung."""
    time_budget_h: float | None = Field(None, gt=0)
    """Hours after which no further setting begins; those that run go on to their end. Each command counts anew."""
    patience: int | None = Field(None, ge=1)
    """No further setting begins once this many in a row were no better than the best one; null: all run. Each command
    counts anew."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at the same time; null: as many as the resources hold."""
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    """Values of train.seed."""
    space: dict[str, Domain] = Field(default_factory=dict)
    """Setting name (as in `qam.iou_thr`) -> domain, or a free name -> groups of settings that move together."""
    points: list[dict[str, Any]] = Field(default_factory=list)
    """Settings to try first, as names and values; names of the space that are left out have the values of the file."""
    own_first: bool = True
    """Try the file's own settings before all others, where the space holds them; a grid tries every setting anyway."""

    start_from: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Earlier sweeps, by id, folder or name, whose best settings are tried first; of `best:SWEEP` the best one."""

    @property
    def criterion(self) -> Criterion:
        """What decides, as metric and direction."""
        return Criterion(self.metric, self.mode)

    @property
    def others(self) -> tuple[Criterion, ...]:
        """The metrics that it is weighed against."""
        return tuple(Criterion(metric, mode) for metric, mode in self.against.items())

    @field_validator("metric", mode="before")
    @classmethod
    def _check_single(cls, value: Any) -> Any:
        if isinstance(value, list) and value:
            others = ", ".join(f"{name}: min" for name in value[1:]) or "cost/step_s: min"
            raise ValueError(
                f"one metric decides, here {value[0]}; name the others as sweep.against: {{{others}}}, each with max "
                "or min"
            )
        return value

    @field_validator("search", "trial_scheduler", mode="before")
    @classmethod
    def _check_offered(cls, value: Any) -> Any:
        if isinstance(value, str) and value in NOT_OFFERED:
            raise ValueError(f"{value} is not offered: {NOT_OFFERED[value]}")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> SweepConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds {self.seeds} repeat a value; a repeated run gives nothing new"
            )
        if self.search == "grid" and (self.points or self.start_from):
            name = "points" if self.points else "start_from"
            raise ValueError(f"{name}: search grid tries every setting; leave {name} out")
        if self.metric in self.against:
            raise ValueError(f"against: {self.metric} is sweep.metric already; name another one")
        if len(self.against) > 2:
            raise ValueError(f"against names {len(self.against)} metrics; at most two are allowed")
        for name, domain in self.space.items():
            if self.search == "grid" and not isinstance(domain, Choice | Together):
                raise ValueError(
                    f"search grid tries every value, but space.{name} is {domain_kind(domain)}; "
                    "list its values with choice, or use search: random or tpe"
                )
        if self.num_trials > MAX_TRIALS:
            raise ValueError(
                f"trials: the sweep has {self.num_trials:g} (settings times seeds), and "
                f"at most {MAX_TRIALS} are allowed; vary less, or use search: random or tpe with fewer "
                "trials"
            )
        return self

    @property
    def num_trials(self) -> int:
        """Trials of the whole sweep: settings times seeds."""
        size = count_settings(self.space)
        settings = min(self.trials, size or self.trials)
        if self.search == "grid":
            settings = size or 1
        return settings * len(self.seeds)


class TrackingConfig(Config):
    """Where MLflow keeps runs."""

    uri: str | None = None
    """MLflow tracking URI, of a server or a database (`sqlite:///PATH`); null: an SQLite file under `storage`."""
    log_model: bool = True
    """Log the best network of a run or sweep as a model that `mlflow models predict` runs on images."""
    register_as: str | None = Field(None, min_length=1)
    """Name of a registered model that gets this network as its next version, with the alias `best`; null: none."""

    _check_uri = field_validator("uri")(_refuse_secret)

    @model_validator(mode="after")
    def _check_registered(self) -> TrackingConfig:
        if self.register_as is not None and not self.log_model:
            reason = "needs a model to register; set log_model: true"
            raise ValueError(f"register_as {self.register_as} {reason}")
        return self


def _with_folders(group: Any, *names: str) -> Any:
    """A group of settings with the folders that stand for addresses in a store."""
    if not isinstance(group, dict):
        return group
    folders = {}
    for name in names:
        value = group.get(name)
        if isinstance(value, str) and "://" in value:
            try:
                folders[name] = storage_folder(value, name)
            except ConfigError as error:
                raise ValueError(str(error)) from error
    return group | folders


class RunSpec(BoxSegConfig):
    """Everything one run needs."""

    name: str = Field("boxseg", pattern=r"^\w[\w.-]*$")
    """Name of the experiment and of its folder: letters, digits, and _ . - inside."""
    resources: ResourcesConfig = ResourcesConfig()
    storage: Path = Path("runs")
    """Folder that every node can reach, or a store: s3://BUCKET/PREFIX, gs://… or az://…"""
    tracking: TrackingConfig = TrackingConfig()
    notify: NotifyConfig = NotifyConfig()

    _sparse: dict[str, Any] = PrivateAttr(default_factory=dict)
    """The settings as given, before presets; trials start from these so that profile and method can vary."""

    @model_validator(mode="wrap")
    @classmethod
    def _keep_sparse(cls, values: Any, handler: ModelWrapValidatorHandler[RunSpec]) -> RunSpec:
        spec = handler(values)
        if isinstance(values, dict):
            # copied, as the caller may change what it gave
            spec._sparse = copy.deepcopy(values)
        return spec

    @field_validator("model", mode="before")
    @classmethod
    def _check_start(cls, model: Any) -> Any:
        return _with_folders(model, "start_from")

    @field_validator("data", mode="before")
    @classmethod
    def _check_sources(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        sources = {}
        for name in ("train", "val"):
            if name in data:
                sources[name] = _with_folders(data[name], "images", "annotations")
        return data | sources

    @field_validator("storage", mode="before")
    @classmethod
    def _check_storage(cls, storage: Any) -> Any:
        try:
            return storage_folder(storage) if isinstance(storage, str) else storage
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("storage: ")) from error

    @model_validator(mode="after")
    def _check_shares(self) -> RunSpec:
        for workers in range(self.resources.least_workers, self.resources.workers + 1):
            if self.train.batch_size % workers:
                every = " of each number from min_workers on" if self.resources.min_workers else ""
                raise ValueError(
                    f"train.batch_size {self.train.batch_size} cannot be shared by "
                    f"resources.workers {workers}; make it a multiple{every}"
                )
        return self

    def starting_from(self, path: Path | None) -> Self:
        """The same settings with `path` as `model.start_from`."""
        start = None if path is None else str(path)
        return type(self).model_validate(assign(self._sparse, ("model", "start_from"), start))

    def __eq__(self, other: object) -> bool:
        """Equal settings are equal, however they were written."""
        # pydantic's own would compare `_sparse` too
        return type(self) is type(other) and self.__dict__ == other.__dict__


class SweepSpec(RunSpec):
    """A run's settings plus what is varied."""

    sweep: SweepConfig = SweepConfig()

    @property
    def rungs(self) -> list[float]:
        """Steps after which ASHA stops weak trials, rising: the burn-in, and each `reduction` times the one before."""
        steps = self.train.steps
        rungs = [float(max(1, min(steps, round(self.sweep.burn_in * steps))))]
        while rungs[-1] * self.sweep.reduction < steps:
            rungs.append(rungs[-1] * self.sweep.reduction)
        return rungs

    def trying(self, points: list[dict[str, Any]]) -> SweepSpec:
        """The same sweep with more settings to try first."""
        points = [*self.sweep.points, *points]
        return self.model_copy(update={"sweep": self.sweep.model_copy(update={"points": points})})

    def trial(self, values: dict[str, Any], seed: int) -> RunSpec:
        """The run with `values` (setting name -> value) in place; profile and method presets apply anew.

        Raises:
            ConfigError: a name is no setting, or the values are not possible together.
        """
        places = {name: f"sweep.space {name}" for name in values}
        return _build_trial(self, values | {"train.seed": seed}, places)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read the settings of one run; a `sweep` section is ignored.

    Args:
        path: Experiment file.
        overrides: `key=value` texts of `--set`, later ones win.

    Raises:
        ConfigError: anything wrong with file or overrides, one line for each fault.
    """
    source = read_settings(path, overrides)
    # in a file the section is fine, as it serves both commands
    for key, place in source.places.items():
        if key[0] == "sweep" and place.startswith("--set"):
            way_out = "leave it out, or use `boxseg sweep`"
            raise ConfigError(f"{place}: a single run has no sweep; {way_out}")
    return build_run(Source(source.name, _without(source.values, "sweep"), source.places))


def build_run(source: Source) -> RunSpec:
    """The settings of one run from nested values, all of its paths absolute.

    Raises:
        ConfigError: anything wrong with the values, one line for each fault.
    """
    return _build_spec(RunSpec, source)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Read a sweep and check that every trial it can ask for is possible.

    Args:
        path: Experiment file with a `sweep` section.
        overrides: `key=value` texts of `--set`, later ones win.

    Raises:
        ConfigError: anything wrong with file or overrides, one line for each fault.
    """
    source = read_settings(path, overrides)
    spec = _build_spec(SweepSpec, source)
    _check_space(spec, source)
    points = whole_points(spec, source)
    return spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"points": points})})


def read_settings(path: Path, overrides: Sequence[str] = ()) -> Source:
    """File and overrides as one nested dict with absolute paths; nothing is validated yet.

    Relative paths belong to the file that names them; in `--set`, and for the default `storage`, to the current folder.
    """
    source = functools.reduce(override, overrides, read_source(path))
    # `qam:` and nothing below
    values = {name: value for name, value in source.values.items() if value is not None}
    return Source(source.name, {"storage": str(Path.cwd() / "runs"), **values}, source.places)


Spec = TypeVar("Spec", bound=RunSpec)


def _build_spec(model: type[Spec], source: Source) -> Spec:
    """Validate nested values; faults come as one ConfigError with a line each."""
    try:
        return model.model_validate(source.values)
    except ValidationError as error:
        raise explain(error, source, model) from error


def _build_trial(spec: SweepSpec, values: dict[str, Any], places: dict[str, str]) -> RunSpec:
    """The run with `values` in place; faults in them are named by `places` (setting name -> where it is varied)."""
    # no notification is sent for a trial, so its process needs no address
    sparse = _without(spec._sparse, "sweep", "notify")
    for name, value in values.items():
        # searches draw numbers of numpy, which YAML and JSON do not know
        sparse = assign(sparse, name.split("."), value.item() if hasattr(value, "item") else value)
    written = {tuple(name.split(".")): place for name, place in places.items()}
    return _build_spec(RunSpec, Source("sweep", sparse, written))


def _check_space(spec: SweepSpec, source: Source) -> None:
    """Refuse a space with names that are no settings, or with values that a run would refuse."""
    space = spec.sweep.space
    if not space and (len(spec.sweep.seeds) == 1 or spec.sweep.search != "grid"):
        raise ConfigError(
            f"{source.name}: sweep.space is empty, so all trials would be the same; add settings "
            "to vary, or use `boxseg train` (to repeat one setting over sweep.seeds: search: "
            "grid)"
        )
    places = {name: source.place(("sweep", "space", name)) for name in space}
    check_names(space, places, RunSpec)
    for entry, domain in space.items():
        places |= dict.fromkeys(names_of(entry, domain), places[entry])
    for values in samples(space):
        try:
            _build_trial(spec, values, {name: places[name] for name in values})
        except ConfigError as error:
            together = ", ".join(f"{name} {as_yaml(value)}" for name, value in values.items())
            raise ConfigError(f"{error} (by sweep.space a trial could get {together})") from error


def _without(values: dict[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in left_out}
