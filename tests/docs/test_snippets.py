"""What the pages show works: manifests are taken, commands and their options exist, files are there."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import click
import pytest
import yaml
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands

from fettle.api.base import API_VERSION
from fettle.api.interval import tango
from fettle.cli import kubectl, main
from fettle.cli.local import admission

LEAST: dict[str, dict[str, Any]] = {  # what a fragment leaves out
    "OptimizedModel": {
        "source": {"uri": "pvc://models/m.onnx"},
        "data": {"evaluation": {"uri": "pvc://models/m.npz"}},
        "targets": [{"name": "cpu"}],
    },
    "ModelDeployment": {"model": {"ref": {"name": "m", "target": "cpu"}}},
}
PROGRAMS = {("fettle",): main.main, ("kubectl", "fettle"): kubectl.main}
YAML = [block for page in PAGES for block in blocks(page) if block.language in {"yaml", "yml"}]
COMMANDS = [(where, words) for page in PAGES for where, words in commands(page)]
YOURS = {"optimizedmodel.yaml", "modeldeployment.yaml", "model.yaml", "-", "FILE"}  # names for the reader's own files
TARGETS = set(re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text()))
VALUES = yaml.safe_load((ROOT / "charts/fettle/values.yaml").read_text())


def faults(kind: str, spec: dict[str, Any]) -> list[str]:
    """What is wrong with a spec, read as strictly as a cluster reads it."""
    schema = admission.schema_of(kind)
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "m"}, "spec": {**LEAST[kind], **spec}}
    return admission.complaints(admission.completed(document, schema), schema)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_manifest_has_no_field_that_is_unknown_or_breaks_a_rule(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if document.get("apiVersion") == API_VERSION:
            assert faults(document["kind"], document["spec"]) == []
        elif set(document) == {"spec"}:  # a fragment: of one kind or the other
            found = [faults(kind, document["spec"]) for kind in LEAST]
            assert [] in found, found


def used(*program: str) -> list[Any]:
    """Every command that begins with these words."""
    return [
        pytest.param(words, id=f"{where} {' '.join(words)}")
        for where, words in COMMANDS
        if tuple(words[: len(program)]) == program
    ]


@pytest.mark.parametrize("words", used("make"))
def test_a_target_exists(words: list[str]) -> None:
    assert {word for word in words[1:] if "=" not in word} <= TARGETS


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `words` run, and the words that are left for it."""
    prefix = next(prefix for prefix in PROGRAMS if tuple(words[: len(prefix)]) == prefix)
    command: click.Command = PROGRAMS[prefix]
    rest = words[len(prefix) :]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest[0])
        assert found is not None, f"{' '.join(prefix)} has no command {rest[0]}"
        command, rest = found, rest[1:]
    return command, rest


@pytest.mark.parametrize("words", used("fettle") + used("kubectl", "fettle"))
def test_a_command_and_its_options_exist(words: list[str]) -> None:
    if words[-1] in {"…", "..."}:
        words = words[:-1]
    words = words[: words.index(">")] if ">" in words else words
    command, rest = resolve(words)
    context = click.Context(command)
    _, left, _ = command.make_parser(context).parse_args(list(rest))
    assert left == [], f"{' '.join(words)}: {left} is nothing"


def helm_values() -> list[Any]:
    sets = [
        pytest.param(assignment.split("=")[0], id=f"{where} {assignment}")
        for where, words in COMMANDS
        if words[0] == "helm"
        for flag, assignment in pairwise(words)
        if flag.startswith("--set")
    ]
    assert sets
    return sets


@pytest.mark.parametrize("path", helm_values())
def test_a_value_exists_in_the_chart(path: str) -> None:
    found = VALUES
    for key in path.split("."):
        assert key in found, f"values.yaml has no {path}"
        found = found[key]


@pytest.mark.parametrize("words", used("kubectl"))
def test_kubectl_is_asked_to_watch_one_kind_at_a_time(words: list[str]) -> None:
    watches = "get" in words and {"-w", "--watch"} & set(words)
    assert not (watches and any("," in word for word in words[words.index("get") + 1 :])), "kubectl refuses this"


@pytest.mark.parametrize("words", used("kubectl") + used("python") + used("helm"))
def test_a_file_that_is_named_is_there(words: list[str]) -> None:
    named = [value for flag, value in pairwise(words) if flag in {"-f", "--filename"}]
    named += [word for word in words if word.startswith(("examples/", "charts/", "bench/"))]
    named += [words[1]] if words[0] == "python" and words[1].endswith(".py") else []
    places = [ROOT, *(ROOT / "examples").iterdir()]
    missing = [name for name in named if name not in YOURS and not any((place / name).exists() for place in places)]
    assert missing == []


def test_the_pages_show_something() -> None:
    assert len(YAML) > 8
    assert len(used("make")) > 5
    assert len(used("kubectl")) > 10


def test_the_number_of_items_that_a_bound_needs_is_what_the_interval_says() -> None:
    text = (ROOT / "docs/guides/constraints.md").read_text()
    rows = re.findall(r"(?m)^\| (0\.\d+) \| (\d+) \| (\d+) \|$", text)
    assert len(rows) == 4
    for bound, quiet, noisy in rows:
        for flips, items in ((0, int(quiet)), (2, int(noisy))):
            assert tango(flips, flips, items).high <= float(bound) < tango(flips, flips, items - 1).high
