"""The two manifests that `fettle init` writes: YAML with comments on what was found and what each choice means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fettle.api import metrics
from fettle.api.interval import items_needed
from fettle.api.metrics import DropUnit
from fettle.api.report import PrepareReport
from fettle.api.signature import Tensor
from fettle.api.vocabulary import Metric
from fettle.cli.plain_yaml import dumped
from fettle.cli.views.progress import size

WIDTH = 118  # of a comment
DEFAULT_DROP = 0.01


@dataclass(frozen=True)
class Starter:
    """The user's choices, and what the prepare task found. `files`: local file -> its address in the claim."""

    name: str
    claim: str
    document: Mapping[str, Any]
    files: Mapping[str, str]
    report: PrepareReport
    command: str

    def text(self) -> str:
        """Both manifests."""
        parts = [*self._head(), *self._model(), "---", *self._deployment()]
        return "\n".join(parts) + "\n"

    @property
    def _metric(self) -> Metric | None:
        return None if self.report.generated else self.report.metric

    def _head(self) -> Iterable[str]:
        report = self.report
        found = [
            f"Written by `{self.command}`, which found:",
            f"  model    {report.source.format}, {size(report.source.bytes)}",
            *(f"  input    {_told(tensor)}" for tensor in report.signature.inputs),
            *(f"  output   {_told(tensor)}" for tensor in report.signature.outputs),
        ]
        if self._metric is not None:
            labels = f"; labels are {report.labels.told}" if report.labels is not None else ", without labels"
            found.append(f"  items    {report.items.items} to evaluate{labels}")
            if report.calibration is not None:
                found.append(f"  items    {report.calibration.items} to calibrate int8")
        if report.training is not None:
            found.append(f"  items    {report.training.items} to train on")
        found += [f"  note     {note}" for note in report.notes]
        found += ["", "Upload the files, apply this manifest, and follow the run:"]
        found += [f"  fettle push {here} {there} --create" for here, there in self.files.items() if here != there]
        found += ["  kubectl apply -f FILE", f"  kubectl fettle status {self.name} --watch"]
        return (f"# {line}".rstrip() for line in found)

    def _model(self) -> Iterable[str]:
        spec = self.document["spec"]
        yield from _plain({"apiVersion": self.document["apiVersion"], "kind": self.document["kind"]})
        yield f"metadata: {{name: {self.name}}}"
        yield "spec:"
        yield "  source:"
        yield f"    uri: {self.files[spec['source']['uri']]}"
        yield f"    sha256: {self.report.source.sha256}  # pins the file: the run ends if it changes"
        yield from self._told_of_source(spec["source"])
        yield from self._data(spec.get("data", {}))
        (target,) = spec["targets"]
        yield "  targets:"
        yield "    - name: cpu"
        yield f"      runtimes: [{', '.join(target['runtimes'])}]  # runtimes that you are willing to serve with"
        yield f"      threads: {target['threads']}  # CPU cores that each serving pod and measuring Job requests; defaults to those of this machine"
        yield from _indented(_plain({"batchSizes": target["batchSizes"]}) if target.get("batchSizes") else (), 6)
        yield from _indented(_plain({"objective": spec["objective"]}) if "objective" in spec else (), 2)
        yield from self._constraints(spec)

    def _told_of_source(self, source: Mapping[str, Any]) -> Iterable[str]:
        """What was said of the model beside its address."""
        told = {key: value for key, value in source.items() if key not in ("uri", "sha256")}
        if "factory" in told:
            told["factory"] = {**told["factory"], "uri": self.files[told["factory"]["uri"]]}
        yield from _indented(_plain(told) if told else (), 4)

    def _data(self, data: Mapping[str, Any]) -> Iterable[str]:
        if not data:
            yield "  # Without evaluation items, only exact candidates are chosen: add data.evaluation."
            return
        yield "  data:"
        for part in ("calibration", "evaluation", "training"):
            given = dict(data.get(part) or {})
            if not given:
                continue
            given["uri"] = self.files[given["uri"]]
            metric = given.pop("metric", None)
            yield f"    {part}:"
            yield from _indented(_plain(given), 6)
            if metric is not None and self._metric is not None:
                row = metrics.entry(self._metric)
                judged = row.by_labels if self.report.labels is not None else row.without_labels
                yield f"      metric: {self._metric.value}  # {judged}"

    def _constraints(self, spec: Mapping[str, Any]) -> Iterable[str]:
        if self._metric is None:
            return
        given = ((spec.get("constraints") or {}).get("accuracy") or {}).get("maxDrop")
        row = metrics.entry(self._metric)
        labelled = self.report.labels is not None
        if given is None and labelled and row.drop is not DropUnit.FRACTION:
            yield "  # Set how much may be lost, in the unit of the metric, so that lossy candidates can pass:"
            yield "  # constraints: {accuracy: {maxDrop: 0.1}}"
            return
        bound = DEFAULT_DROP if given is None else given
        needed = items_needed(bound)
        items = self.report.items.items
        if needed is None:
            says = "the most that may be lost; only a clear gain proves a drop of 0"
        elif items >= needed:
            says = f"the most that may be lost, with 95 % confidence; {items} items can prove this (at least {needed} are needed)"
        else:
            says = f"too few items to prove this: at least {needed} are needed, there are {items}"
        yield "  constraints:"
        yield f"    accuracy: {{maxDrop: {bound:g}}}  # {says}"

    def _deployment(self) -> Iterable[str]:
        yield from _plain({"apiVersion": self.document["apiVersion"], "kind": "ModelDeployment"})
        yield f"metadata: {{name: {self.name}}}"
        yield "spec:"
        yield f"  model: {{ref: {{name: {self.name}, target: cpu}}}}  # follows the latest published artifact"
        yield from self._pods()
        yield "  rollout:"
        yield "    steps: [{weight: 34}, {pause: {seconds: 60}}, {weight: 67}, {pause: {seconds: 60}}, {weight: 100}]"
        yield "    analysis:"
        yield "      successRate: {min: 0.99}"
        yield "      latency: {percentile: 50, maxRatioToStable: 2}"
        if self._metric is None or metrics.entry(self._metric).canaries is not None:
            yield "      agreement: {min: 0.95}  # share of live requests with the same answer as the stable revision's"

    def _pods(self) -> Iterable[str]:
        """How many there are, and what each requests unless the operator has a default of its own."""
        (target,) = self.document["spec"]["targets"]
        cores = target["threads"]
        yield f"  replicas: 3  # each pod requests and may use {cores} CPU and 1Gi, which keeps its latency stable"
        yield "  # On a small cluster, request less. The latency then depends on what else runs on the node:"
        yield f'  # server: {{resources: {{requests: {{cpu: 200m, memory: 512Mi}}, limits: {{cpu: "{cores}", memory: 512Mi}}}}}}'


def addresses(name: str, claim: str, paths: Iterable[str | None]) -> dict[str, str]:
    """Local file or folder -> its address in the claim. A path that is already an address is kept."""
    return {
        path: path if "://" in path else f"pvc://{claim}/{name}/{Path(path).absolute().name}"
        for path in paths
        if path is not None
    }


def _told(tensor: Tensor) -> str:
    """'image FP32 [batch, 1, 32, 32]'."""
    sizes = [
        "batch" if axis == tensor.batch_axis else "varies" if size < 0 else str(size)
        for axis, size in enumerate(tensor.shape)
    ]
    return f"{tensor.name} {tensor.dtype} [{', '.join(sizes)}]"


def _plain(values: Mapping[str, Any]) -> list[str]:
    return dumped([dict(values)], WIDTH).splitlines()


def _indented(lines: Iterable[str], by: int) -> Iterable[str]:
    return (" " * by + line for line in lines)
