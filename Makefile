# `make` lists what there is. Every target sets up .venv by itself, as uv.lock says.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
IMAGE ?= intervaljob
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/intervaljob
HELM_VERSION := v3.19.0
HELM4_VERSION := v4.3.1
KIND_VERSION := v0.33.0
# Of that release of kind.
KIND_NODE := kindest/node:v1.34.11@sha256:44e222ee2132dab25ff87301682f89eb82c7880ea3a1bf543bfe9708fd08d67d
ACTIONLINT_VERSION := v1.7.12
HELM_CACHED := $(CACHE)/helm-$(HELM_VERSION)/helm
HELM4_CACHED := $(CACHE)/helm-$(HELM4_VERSION)/helm
KIND ?= $(CACHE)/kind-$(KIND_VERSION)/kind
ACTIONLINT ?= $(CACHE)/actionlint-$(ACTIONLINT_VERSION)/actionlint
export HELM ?= $(or $(shell command -v helm),$(HELM_CACHED))
BUILDER ?= $(firstword $(foreach program,docker podman buildah,$(if $(shell command -v $(program)),$(program))))

.PHONY: help
help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-32s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Try it

.PHONY: demo
demo: $(READY) ## Show a task that outlives its worker: everything on this machine, about a minute
	$(BIN)/intervaljob dev --demo $(ARGS)

.PHONY: dev
dev: $(READY) ## Run everything on this machine until Ctrl-C; ARGS="--help" lists options
	$(BIN)/intervaljob dev $(ARGS)

# Check it

.PHONY: check
check: lint types imports test ## Everything that CI checks

.PHONY: lint
lint: $(READY) $(ACTIONLINT) ## Style of the code, and of the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(ACTIONLINT)

.PHONY: types
types: $(READY) ## Types, strictly
	$(BIN)/mypy

.PHONY: imports
imports: $(READY) ## Which part may import which
	$(BIN)/lint-imports

.PHONY: programs
programs: $(READY) ## Download or compile etcd, kube-apiserver and kubectl, unless they are here
	$(BIN)/python -c 'from intervaljob.embedded.programs import find; find(report=lambda line: print(line, flush=True))'

.PHONY: test
test: programs $(HELM) ## All tests; ARGS="tests/unit -k schedule" chooses
	$(BIN)/pytest --durations=10 $(ARGS)

.PHONY: e2e
e2e: $(READY) $(HELM) $(if $(E2E_KUBECONFIG),,$(KIND)) ## The chart on kind, or on the cluster that E2E_KUBECONFIG names; needs kubectl
	E2E=1 $(BIN)/pytest --timeout=600 --durations=10 --cluster-name=intervaljob-e2e \
		--kind-bin='$(KIND)' --kind-image='$(KIND_NODE)' tests/e2e/kubernetes $(ARGS)

ROUNDS ?= 20
SEED ?= 1

.PHONY: chaos
chaos: programs ## Fault campaign: ROUNDS=20 SEED=1; kills, freezes, cuts and deletes, then proves that nothing was lost
	PYTHONPATH=tests $(BIN)/python -m chaos --rounds $(ROUNDS) --seed $(SEED) $(ARGS)

.PHONY: bench
bench: $(READY) ## Tasks a second and pick-up beside peers, on one Postgres; needs Go for River; ARGS="--help" lists options
	$(BIN)/python benchmarks/throughput.py --latency $(ARGS)

.PHONY: model
model: ## Check the model of the recovery protocol; needs Debian's package spin and a C compiler
	docs/model/check

# Run it

.PHONY: crds
crds: ## Install the CRD in the cluster of KUBECONFIG
	kubectl apply --server-side -f crds/

.PHONY: migrate
migrate: $(READY) ## Bring the database of INTERVALJOB_DATABASE_URL to the newest schema
	$(BIN)/intervaljob migrate up $(ARGS)

.PHONY: migrate-remove-current-task-id
migrate-remove-current-task-id: $(READY) ## Migrate up to the step that removes jobs.current_task_id, no further
	@step=$$(basename operator/intervaljob/database/migrations/*_remove_current_task_id.up.sql)
	$(BIN)/intervaljob migrate up --to "$$((10#$${step%%_*}))" $(ARGS)

.PHONY: run-operator
run-operator: $(READY) ## Run an operator as INTERVALJOB_* say; ARGS="--help" lists options
	$(BIN)/intervaljob operator $(ARGS)

.PHONY: run-worker
run-worker: $(READY) ## Run a worker as INTERVALJOB_* say; ARGS="--help" lists options
	$(BIN)/intervaljob worker $(ARGS)

# Build it

.PHONY: build-worker
build-worker: $(READY) ## Build the wheel into dist/, and the image IMAGE where there is a Dockerfile and a BUILDER
	@$(BIN)/python -m hatchling build --target wheel
	if [ ! -e Dockerfile ]; then
		echo 'no image: there is no Dockerfile yet'
	elif [ -z '$(BUILDER)' ]; then
		echo 'no image: install docker, podman or buildah'
	else
		$(BUILDER) build --tag '$(IMAGE)' .
	fi

.PHONY: generate
generate: $(READY) $(HELM) ## Write what the chart and the manifests repeat of other files; needs helm
	$(BIN)/python helm/generate.py

.PHONY: lock
lock: $(READY) ## Resolve the dependencies anew into uv.lock; ARGS="--upgrade" takes newer ones
	env -u UV_DEFAULT_INDEX -u UV_INDEX -u UV_INDEX_URL $(BIN)/uv lock --no-config $(ARGS)

.PHONY: clean
clean: ## Remove what was built and cached here
	rm -rf .venv dist .dev .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find operator tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: helm4
helm4: $(HELM4_CACHED) ## Compile Helm 4, unless it is here, and say where
	@echo $<

$(HELM_CACHED) $(HELM4_CACHED) $(KIND) $(ACTIONLINT):
	@echo 'compiling $(notdir $(@D)) (once)' >&2
	GOBIN='$(@D)' go install '$(MODULE)'

$(HELM_CACHED): MODULE := helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)
$(HELM4_CACHED): MODULE := helm.sh/helm/v4/cmd/helm@$(HELM4_VERSION)
$(KIND): MODULE := sigs.k8s.io/kind@$(KIND_VERSION)
$(ACTIONLINT): MODULE := github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION)

$(READY): pyproject.toml uv.lock .ci/environment.py
	@$(PYTHON) .ci/environment.py
	touch $@
