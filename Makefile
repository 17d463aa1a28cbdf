# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PYTEST := .venv/bin/pytest
# Pure tests compute: a process a core, and one that is done takes tests from another, so that all end at once.
# Those of the API server wait more than they compute.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist worksteal
WAITING := --numprocesses 3 --dist loadfile
# Those with real pods share two cores with the pods.
WITH_PODS := --numprocesses 2 --dist loadfile
# Tests and benchmarks have a cluster of their own, empty when they start and stopped when they end: docs/design/clusters.md.
ON_OWN_CLUSTER := $(PYTHON) -m tools.cluster run
# The cluster that a person looks at: kind's where a Docker engine answers, else the embedded one, or the one that FETTLE_KUBECONFIG names.
UP := $(PYTHON) -m tools.cluster up

# The tests start some thousand Python processes. Each begins three times as fast with bytecode that an earlier one kept, which
# many a container's environment forbids and no installer made.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/.cache/bytecode

.PHONY: help setup lock lint type test test-unit coverage test-cluster test-e2e test-integrations test-torch test-toolchains test-kills test-fuzz bench-rollout bench-optimize bench-formats bench-serve bench-train bench-engines crds verify docs images install images-torch images-gpu check-gpu cluster cluster-down cluster-status demo demo-s3 demo-clean clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'

setup: ## create the Python environment in .venv from the locked requirements
	@tools/setup.sh

lock: setup ## solve and lock all dependencies again (requirements/*.txt)
	tools/lock.sh

lint: setup ## run ruff and check formatting and import layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports --no-cache

type: setup ## run mypy --strict
	.venv/bin/mypy

crds: setup ## generate crds/*.yaml, the chart's copy, docs/reference and the server's gRPC messages from their sources
	$(PYTHON) -m fettle.api.crd
	$(PYTHON) -m fettle.api.reference
	$(PYTHON) -m tools.docs
	$(PYTHON) -m tools.protobuf

verify: setup ## fail if a generated file is out of date
	$(PYTHON) -m fettle.api.crd --check
	$(PYTHON) -m fettle.api.reference --check
	$(PYTHON) -m tools.docs --check
	$(PYTHON) -m tools.protobuf --check

docs: setup ## build the documentation site in site/ (open site/index.html)
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
	@echo 'site/index.html; with search: $(PYTHON) -m http.server --directory site'

cluster: setup ## start a real Kubernetes on this machine (Docker and kind, or Linux and root); kubeconfig in .cluster/kubeconfig
	@$(UP)

cluster-down: setup ## stop it, and the tests' cluster if it is still running; leaves nothing behind in the kernel
	@$(PYTHON) -m tools.cluster down

cluster-status: setup ## show what is running
	@$(PYTHON) -m tools.cluster status

images: setup ## build the images that changed, and bring them to the cluster (IMAGES="optimizer-sklearn server-litert" for others)
	@$(PYTHON) -m tools.cluster images $(IMAGES)

install: setup ## the same, and install or upgrade the operator on that cluster with every image built so far
	@$(PYTHON) -m tools.cluster images
	@$(if $(IMAGES),$(PYTHON) -m tools.cluster images $(IMAGES))
	@$(PYTHON) -m tools.demo install

images-torch: setup ## the same, with the PyTorch images (server-torch 1.3 GB more, optimizer-torch 1.6 GB)
	@$(PYTHON) -m tools.cluster images --torch

images-gpu: setup ## the same, with the images for NVIDIA GPUs (some GB more each; TORCH=1: those with PyTorch too; TENSORRT=1: with TensorRT; docs/guides/gpu.md)
	@$(PYTHON) -m tools.cluster images --gpu $(if $(TORCH),--torch) $(if $(TENSORRT),--tensorrt)

check-gpu: ## check every GPU runtime on this machine's NVIDIA GPU; writes bench/results/gpu.json, 8 minutes (bench/gpu/README.md)
	@bench/gpu/check.sh

test: setup ## run all tests: unit, cluster (real API server), charts, e2e (real pods), on a separate cluster
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit tests/tools tests/docs
	@$(ON_OWN_CLUSTER) --images -- bash -euxc '$(PYTEST) $(WAITING) tests/charts tests/cluster; $(PYTEST) $(WITH_PODS) tests/e2e'

test-unit: setup ## run the unit tests, without a cluster
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit tests/tools tests/docs

coverage: setup ## run the unit tests, and print the lines that they do not reach
	$(PYTEST) $(SIDE_BY_SIDE) --cov=fettle --cov-report=term:skip-covered tests/unit

test-cluster: setup ## run the tests against a real API server
	@$(ON_OWN_CLUSTER) -- $(PYTEST) $(WAITING) tests/charts tests/cluster

test-e2e: setup ## run the tests with real pods
	@$(ON_OWN_CLUSTER) --images -- $(PYTEST) $(WITH_PODS) tests/e2e

test-integrations: setup ## run the tests with Argo CD, an S3 server and Helm under load, on a cluster of their own; builds their programs once
	@$(PYTHON) -m tools.cluster run --name fettle-integrations --images -- $(PYTEST) -o faulthandler_timeout=0 tests/integrations

test-torch: setup ## run the PyTorch tests with real pods (images of 1.3 and 1.6 GB more)
	@FETTLE_TORCH_IMAGES=1 $(ON_OWN_CLUSTER) --torch -- $(PYTEST) tests/e2e/test_torch.py

test-toolchains: setup ## run the tests of large toolchains, each in an environment of its own (ONLY=NAME for one)
	@$(PYTHON) -m tools.toolchains run $(ONLY)

test-kills: setup ## play every random history of a rollout, and kill the operator after each of its API writes; 10 minutes
	FETTLE_TEST_HISTORIES_EVERY=1 $(PYTEST) $(SIDE_BY_SIDE) tests/unit/plan/rollout/test_histories.py
	@FETTLE_TEST_KILLS_EVERY=1 $(ON_OWN_CLUSTER) -- $(PYTEST) tests/cluster/test_killed.py

test-fuzz: setup ## measure the memory that each of a hundred thousand broken requests takes in the server; some minutes
	FETTLE_TEST_FUZZ_MEASURED_EVERY=1 $(PYTEST) $(SIDE_BY_SIDE) tests/unit/server/test_fuzz.py

bench-rollout: setup ## run every order of events under load; writes bench/results/rollout.json, 15 minutes
	@$(ON_OWN_CLUSTER) --images -- $(PYTHON) -m bench.rollout

bench-optimize: setup ## run Fettle and its peers' own flows on real models; writes bench/results/optimize.json, some hours on a quiet machine
	@$(PYTHON) -m bench.optimize $(if $(ONLY),--only $(ONLY)) $(if $(TOOL),--tool $(TOOL)) $(if $(LIMIT),--limit $(LIMIT))

bench-formats: setup ## take a model of each source format to a served artifact; writes bench/results/formats.json, half an hour
	@$(PYTHON) -m bench.formats $(ONLY) $(if $(LIMIT),--limit $(LIMIT))

bench-serve: setup ## run the server and its peers under load; writes bench/results/serve.json, an hour on a quiet machine
	@$(PYTHON) -m bench.serve $(if $(ONLY),--only $(ONLY)) $(if $(SERVER),--server $(SERVER)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH))

bench-train: setup ## run every technique that trains on real tasks; writes bench/results/train.json, half an hour on a quiet machine
	@$(PYTHON) -m bench.train $(ONLY)

bench-engines: setup ## build TensorRT RTX engines of real models, without a GPU; writes bench/results/engines.json, some minutes on a quiet machine
	@$(PYTHON) -m tools.toolchains make tensorrt-rtx
	@PYTHONPATH=operator:. .cache/toolchains/tensorrt-rtx/bin/python -m bench.gpu.engines

demo: setup ## run the demo on a real cluster: optimize, serve, canary, roll back
	@$(UP)
	@$(PYTHON) -m tools.cluster images
	@$(PYTHON) -m tools.demo run

demo-s3: setup ## run the demo with its files and its store on an S3 server, which is away for AWAY seconds in each stage (60)
	@$(UP)
	@$(PYTHON) -m tools.cluster images
	@$(PYTHON) -m tools.integrations.demo_on_s3 $(if $(AWAY),--away $(AWAY))

demo-clean: setup ## remove what the demo created (the cluster stays; make cluster-down stops it)
	@$(PYTHON) -m tools.demo clean

clean: setup ## stop every cluster of this checkout and remove everything that was built here
	@$(PYTHON) -m tools.cluster down --purge
	rm -rf .cluster .venv .cache dist site
