"""Reads Fettle objects for the command line, and prints them for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from fettle.api.modeldeployment import ModelDeployment
from fettle.api.optimizedmodel import OptimizedModel
from fettle.cli.access.cluster import DEPLOYMENTS, MODELS, Cluster, Object
from fettle.cli.plain_yaml import dumped
from fettle.errors import ClusterError

ResourceT = TypeVar("ResourceT", ModelDeployment, OptimizedModel)
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def deployment_of(cluster: Cluster, name: str) -> ModelDeployment:
    """The ModelDeployment. Raises ClusterError."""
    return read_deployment(cluster.get(DEPLOYMENTS, name))


def read_deployment(manifest: Object) -> ModelDeployment:
    """What the API server answered. Raises ClusterError where it cannot be read."""
    return _read(ModelDeployment, manifest)


def model_of(cluster: Cluster, name: str) -> OptimizedModel:
    """The OptimizedModel. Raises ClusterError."""
    return read_model(cluster.get(MODELS, name))


def read_model(manifest: Object) -> OptimizedModel:
    """What the API server answered. Raises ClusterError where it cannot be read."""
    return _read(OptimizedModel, manifest)


def _read(kind: type[ResourceT], manifest: Object) -> ResourceT:
    try:
        return kind.model_validate(manifest)
    except ValidationError as error:
        what = f"{kind.__name__.lower()} {manifest['metadata']['name']}"
        raise ClusterError(f"{what} cannot be read: {_first(error)}") from error


def output_option(text: str = "Output format for programs.") -> Callable[[Decorated], Decorated]:
    """The option `-o json|yaml`; `text` is its help text."""
    return click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help=text)


def echo(value: Any, output: str) -> None:
    """Print `value` as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2))
    else:
        click.echo(dumped([value]), nl=False)


def _first(error: ValidationError) -> str:
    fault = error.errors()[0]
    return f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
