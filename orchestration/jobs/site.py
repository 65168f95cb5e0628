"""What the owners of a Kubernetes cluster require of everything that runs there: one file per site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from boxseg.config.method import Config
from orchestration.config.explain import explain
from orchestration.config.source import read_source


def _check_name(name: str) -> str:
    if len(name) > 253 or not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise ValueError(
            f"{name!r:.60} is no name of Kubernetes, which are of small letters, digits, - and ."
        )
    return name


Name = Annotated[str, AfterValidator(_check_name)]


class Toleration(Config):
    """A taint of nodes that the workers accept; fields as in Kubernetes, which names them in camel case as well."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    """What the taint has to be for `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """null: every effect."""

    @model_validator(mode="after")
    def _check_value(self) -> Toleration:
        if (self.value is None) == (self.operator == "Equal"):
            raise ValueError("operator Equal goes with a value, and Exists without one")
        return self


class Site(Config):
    """Settings of a site; each is left out of the manifest where it is empty."""

    namespace: Name | None = None
    """null: kubectl's own."""
    queue: Name | None = None
    """Kueue's local queue, which decides when a job or cluster starts."""
    priority_class: Name | None = None
    """Kubernetes' priority class of all pods; a queue goes by it as well."""
    node_selector: dict[str, str] = Field({})
    """Labels of the nodes that workers go to."""
    tolerations: list[Toleration] = Field([])
    """Taints of nodes that workers accept."""
    pull_secrets: list[Name] = Field([])
    """Secrets for the registry of the image."""
    secrets: list[Name] = Field([])
    """Secrets whose keys all processes get as environment variables: of an object store, of a tracking server. Their
    values are in no manifest."""


def read_site(path: Path) -> Site:
    """Read the settings of a site.

    Raises:
        ConfigError: no such file, not YAML, or settings that are none; one line for each fault.
    """
    source = read_source(path)
    try:
        return Site.model_validate(source.values)
    except ValidationError as error:
        raise explain(error, source, Site) from error


def pod_settings(site: Site) -> dict[str, Any]:
    """What all pods of a site have, as Kubernetes writes it."""
    settings: dict[str, Any] = {}
    if site.pull_secrets:
        settings["imagePullSecrets"] = [{"name": name} for name in site.pull_secrets]
    if site.priority_class:
        settings["priorityClassName"] = site.priority_class
    return settings


def worker_settings(site: Site) -> dict[str, Any]:
    """What pods of workers have in addition."""
    settings: dict[str, Any] = {}
    if site.node_selector:
        settings["nodeSelector"] = site.node_selector
    if site.tolerations:
        settings["tolerations"] = [each.model_dump(exclude_none=True) for each in site.tolerations]
    return settings
