# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A registry to publish to; empty: one on loopback is started.
REGISTRY ?=
LOOPBACK := 127.0.0.1:5000
TARGET_REGISTRY = $(or $(REGISTRY),$(LOOPBACK))

PYTHON ?= python3
GPU_PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Another platform than this machine's, for `make setup` and `make image`: linux/arm64.
PLATFORM ?=

# What `make image` builds, and more options for it.
ARCH ?= blackwell
RELEASE ?=
VARIANT ?= awq
# FlashInfer's modules take half an hour on 2 cores: too long for `make image`.
AOT ?= none
FROM ?= wheel
BASE ?= bootstrap
OPTIONS ?=
# GPU=1 verifies on this machine's GPU too.
GPU ?=
# Folder for the checks' reports; of itself only `make test-image` writes any.
REPORTS ?=
GPU_FLAG = $(if $(GPU),--gpu)
WHAT = $(if $(RELEASE),--release $(RELEASE)) --arch $(ARCH) --from $(FROM) --base $(BASE) --variant $(VARIANT) \
  --aot $(AOT) $(if $(PLATFORM),--platform $(PLATFORM)) $(GPU_FLAG) \
  $(if $(REPORTS),--reports $(REPORTS))

$(VENV)/.ready: requirements.txt
	@scripts/tools.sh
	@echo "setup: virtual environment with hashed dependencies" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@


.PHONY: venv setup image image-source image-quantise test checks unit e2e e2e-builds beside e2e-heavy test-image test-gpu quantise-venv test-quantise lint docs render requirements lock matrix drift follow archs faults audit bench clean help

venv: $(VENV)/.ready

setup: venv ## Prepare this machine: packages, engine, registry (PLATFORM=linux/arm64: emulation)
	@scripts/tools.sh
	@scripts/engine.sh
	@mkdir -p .build; rm -f .build/registry  # where an unnamed --push goes
	@if [ -z "$(REGISTRY)" ]; then scripts/registry.sh $(LOOPBACK); echo $(LOOPBACK) > .build/registry; fi
	@if [ -n "$(PLATFORM)" ]; then scripts/emulation.sh on $(PLATFORM); fi

image: setup ## Build, check and publish an image (ARCH= RELEASE= VARIANT= FROM= BASE=)
	@$(RUN) build.py $(WHAT) --registry $(TARGET_REGISTRY) --push $(OPTIONS)

image-source: setup ## Compile the reference's vLLM (components core) into an image: hours; resumes
	@$(RUN) build.py --arch $(ARCH) --from source --components core --source cutlass=pypi \
	  --base $(BASE) --variant $(VARIANT) --registry $(TARGET_REGISTRY) --push $(OPTIONS)

image-quantise: setup ## Build, check and publish the image that quantises (RELEASE=modelopt-VERSION BASE= PLATFORM=)
	@$(RUN) build.py --kind quantise $(if $(RELEASE),--release $(RELEASE)) --base $(BASE) \
	  $(if $(PLATFORM),--platform $(PLATFORM)) $(if $(REPORTS),--reports $(REPORTS)) \
	  --registry $(TARGET_REGISTRY) --push $(OPTIONS)

test: setup ## Lint, unit tests, and end-to-end tests against the real engine and registry
	@scripts/test-tools.sh
	@$(MAKE) --no-print-directory -j2 e2e-builds beside

checks: lint unit

unit: venv ## Unit tests: minutes, no engine
	@$(RUN) -m pytest tests/unit -q -n auto --dist loadfile

E2E = REGISTRY=$(TARGET_REGISTRY) $(RUN) -m pytest tests/e2e -v --durations=25 --durations-min=5

e2e: setup ## End-to-end tests (they build the image of `make image`)
	@scripts/test-tools.sh
	@$(E2E) -m "not heavy"

# The parts of `make e2e`. Building the image and upon it takes most of the time and little of it
# on two cores; what else there is runs beside it, without room made on the disk meanwhile (CI=).
e2e-builds:
	@$(E2E) -m "builds and not heavy"

beside:
	@$(MAKE) --no-print-directory -j1 checks
	@$(E2E) -m "not builds and not runs and not heavy"
	@CI= $(E2E) -m "runs and not heavy"

e2e-heavy: setup ## End-to-end tests that compile, or read many wheels: nightly
	@scripts/test-tools.sh
	@$(E2E) -m heavy

test-image: REPORTS := $(or $(REPORTS),reports)
test-image: setup ## Run the image tests against IMAGE= (ARCH= RELEASE= ... what it must be; GPU=1; ENGINE=cpu)
	@$(RUN) build.py verify $(IMAGE) $(WHAT) $(OPTIONS)
	@$(if $(ENGINE),ENGINE_IMAGE=$(IMAGE) $(RUN) -m pytest tests/e2e/engine -v -rs)

test-gpu: ## On a GPU: kernels and served checkpoints, without Docker (GPU_PYTHON=; docs/gpu.md)
	@$(GPU_PYTHON) -m pytest tests/gpu -v -rs

# torch with CUDA; a wheel of it without, such as torch-2.13.0+cpu-*.whl, is smaller.
QUANTISE_TORCH ?= --require-hashes -r releases/quantise/torch-2.13.0.txt
QUANTISE := .build/quantise-venv

quantise-venv: venv ## A Python with ModelOpt for build.py quantise (QUANTISE_TORCH= a wheel of torch)
	@$(VENV)/bin/uv venv -q --allow-existing --python $(RUN) $(QUANTISE)
	@$(VENV)/bin/uv pip install -q --python $(QUANTISE)/bin/python --compile-bytecode --no-deps \
	  --require-hashes -r releases/quantise/modelopt-0.47.0.txt
	@$(VENV)/bin/uv pip install -q --python $(QUANTISE)/bin/python --compile-bytecode $(QUANTISE_TORCH)

test-quantise: quantise-venv ## Quantise tiny models with the real ModelOpt, on a CPU
	@$(QUANTISE)/bin/python -m pytest tests/quantise -v -rs --durations=10

lint: venv docs ## ruff, mypy, codespell, shellcheck, actionlint, zizmor, hadolint, rendered files, locks
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo --no-cache
	@$(VENV)/bin/codespell
	@$(VENV)/bin/shellcheck scripts/*.sh .ci/run
	@$(RUN) scripts/version_literals.py
	@scripts/actionlint.sh
	@$(VENV)/bin/zizmor --quiet --offline .github/workflows
	@$(RUN) build.py render --check
	@find dockerfiles -name '*.Dockerfile' -print0 | xargs -0 $(VENV)/bin/hadolint --config .hadolint.yaml
	@$(RUN) build.py lock --check

docs: venv ## Build the documentation site into .build/site (no network)
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict  # with --quiet, --strict sees no warnings

render: venv ## Render the Dockerfiles, schemas, docs/cli.md and docs/sabotage.md
	@$(RUN) build.py render
	@$(RUN) -m tests.e2e.test_sabotage

requirements: venv ## Pin this project's own packages again, with hashes
	@$(VENV)/bin/uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate -o requirements.txt
	@cd releases/quantise && ../../$(VENV)/bin/uv pip compile -q modelopt-0.47.0.in --override without-torch.txt \
	  --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -o modelopt-0.47.0.txt
	@cd releases/quantise && ../../$(VENV)/bin/uv pip compile -q torch-2.13.0.in --python-platform linux \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate -o torch-2.13.0.txt

lock: venv ## Make the dependency locks again
	@$(RUN) build.py lock

matrix: venv ## What the build workflow builds, as JSON for its matrix (OPTIONS=)
	@$(RUN) build.py matrix --json $(OPTIONS) | tr -d '\n'

drift: venv ## What the patches would need on VLLM= (newest: the newest release)
	@$(RUN) build.py patch drift --vllm $(or $(VLLM),newest)

follow: setup ## Add the newest vLLM if it is not here, build it, and open a pull request (nightly)
	@rm -f .build/follow.md
	@$(RUN) build.py release follow --report .build/follow.md --registry $(TARGET_REGISTRY) $(OPTIONS)
	@if [ -s .build/follow.md ]; then scripts/pull-request.sh follow "Add the newest vLLM" .build/follow.md; fi

archs: venv ## Compare releases/archs/ and switches/ with the sources of each release
	@for file in releases/archs/*.json; do version=$$(basename $$file .json); \
	  $(RUN) build.py arch extract --check --vllm $$version || exit; \
	  $(RUN) build.py release switches --check $$version || exit; done

faults: venv ## The doctor's known faults to look at again (NOTES= release notes of REPOSITORY=)
	@$(RUN) build.py release faults $(if $(NOTES),--notes $(NOTES)) $(if $(REPOSITORY),--repository $(REPOSITORY))

audit: venv ## Known vulnerabilities of the locks, with verdicts (asks OSV's service, or DB=FOLDER)
	@$(RUN) build.py audit $(if $(DB),--db $(DB))

bench: setup ## Benchmarks: ratios in one run, written to benchmarks/results
	@REGISTRY=$(TARGET_REGISTRY) $(RUN) benchmarks/run.py

clean: ## Remove this checkout's build state and virtual environment (images stay)
	@rm -rf .build $(VENV) .mypy_cache .ruff_cache

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
