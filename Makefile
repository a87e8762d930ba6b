# Every target sets up what it needs in .venv by itself.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# pinned because plain `torch` may bring gigabytes of CUDA that tests and demo do not use
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# where sums of several processes, learned masks and resumed runs meet rounding
ROUNDS := $(addprefix tests/,cli/test_processes.py cli/test_ranks.py model/test_sheared.py model/test_search.py model/test_train.py)
FAST := not slow and not shells and not golden and not outside
MODEL := build/smollm2
RUNTIMES := build/runtimes
REAL := PRUNECLI_SMOLLM2=$(abspath $(MODEL)) PRUNECLI_RUNTIMES=$(abspath $(RUNTIMES))
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install test portable foreign floors ceilings versions soak examples outside experiment study study-page study-smoke golden check docs site shells demo bench solve methods agreement experts shape walk masks throughput scratch runtimes clean

help: ## list all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/demo: $(VENV)/installed
	$(PIP) -e '.[demo]'
	touch $@

install: $(VENV)/installed ## install the package and its tools into .venv

test: install ## run the fast tests
	HF_HUB_OFFLINE=1 pytest -n 2 -m '$(FAST)'

portable: install ## run the fast tests under three instruction sets, with 1 and 2 threads
	tests/portable.sh 'default avx2 avx512' '1 2' pytest -n 2 -m '$(FAST)'

foreign: install ## test processes, masks and resuming under another instruction set
	tests/portable.sh foreign 2 pytest -n 2 -m '$(FAST)' $(ROUNDS) -k 'process or mask or resum or same'

floors: ## run the fast tests on the lowest allowed versions, in build/floors
	mkdir -p build && $(PYTHON) .ci/floors.py >build/floors.txt
	PIP_CONSTRAINT=$(abspath build/floors.txt) $(MAKE) versions test VENV=build/floors TORCH=torch

ceilings: ## run the fast tests on the newest versions, in build/ceilings
	rm -rf build/ceilings
	$(MAKE) versions test VENV=build/ceilings TORCH=torch

versions: install ## print the versions of all dependencies
	$(BIN)/python .ci/floors.py | cut -d= -f1 | xargs $(BIN)/python -m pip show | grep -E '^(Name|Version)' | cut -d' ' -f2 | paste - -

soak: install ## run the long tests, and every method on every family
	$(if $(wildcard $(MODEL)/model.safetensors),PRUNECLI_SMOLLM2=$(abspath $(MODEL))) HF_HUB_OFFLINE=1 pytest -m 'slow or matrix'

$(VENV)/notebook: $(VENV)/installed
	$(PIP) -e '.[notebook]'
	touch $@

OUTSIDE := HF_HUB_OFFLINE=1 pytest -n 2 --dist loadfile -m outside -rs

examples: $(VENV)/notebook ## test the example experiment, its report in a browser (chromium), the example notebook
	$(OUTSIDE) --ignore tests/outside/test_runtimes.py

outside: $(VENV)/notebook ## the same, and a real model in other runtimes (npm)
	$(if $(shell command -v npm),$(MAKE) $(RUNTIMES)/ready $(MODEL)/model.safetensors)
	$(if $(shell command -v npm),$(REAL)) $(OUTSIDE)

$(RUNTIMES)/ready: $(VENV)/installed benchmarks/runtimes/get.sh benchmarks/runtimes/llamacpp.mjs
	benchmarks/runtimes/get.sh $(RUNTIMES)

runtimes: $(RUNTIMES)/ready $(MODEL)/model.safetensors ## run pruned models in llama.cpp and ONNX Runtime (needs npm)
	HF_HUB_OFFLINE=1 python benchmarks/runtimes/compare.py $(MODEL) $(RUNTIMES) build/compared

experiment: install ## compare pruned and scratch at toy size: table, figures, report
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(MAKE) -j2 -f examples/experiment/Makefile

study: install ## the paper in miniature, into docs/study (five hours of one core; resumes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(MAKE) -j2 -f examples/experiment/Makefile SETTING=mini
	$(MAKE) study-page

study-page: install ## docs/study again, from the sidecars that are there
	docs/study/update docs/study/sidecars docs/study README.md

study-smoke: install ## every step of the study, on a toy (4 minutes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(MAKE) -j2 -f examples/experiment/Makefile SETTING=smoke
	docs/study/update build/study/smoke/sidecars build/study/smoke/page

golden: $(MODEL)/model.safetensors ## compare with official implementations (needs PRUNECLI_GOLDEN)
	PRUNECLI_SMOLLM2=$(abspath $(MODEL)) HF_HUB_OFFLINE=1 pytest -m 'golden and not slow' -rs

check: install ## lint, format and types
	ruff check .
	ruff format --check .
	mypy

docs: install ## generate completions, man pages, pages of commands, the skill and the sidecar schema
	python docs/generate.py

$(VENV)/docs: $(VENV)/installed
	$(PIP) -e '.[docs]'
	touch $@

site: $(VENV)/docs ## build README, docs and examples as a site in build/site, and check its links
	python docs/gather.py build/pages
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

shells: install ## test completions and man pages (needs bash, zsh, fish, man)
	pytest -m shells

$(MODEL)/model.safetensors: $(VENV)/demo examples/demo/smollm2.py
	mkdir -p $(dir $(MODEL))
	python examples/demo/smollm2.py $(MODEL)
	touch $@

demo: $(MODEL)/model.safetensors ## prune a real Llama with five methods, and compare them
	HF_HUB_OFFLINE=1 examples/demo/run.sh $(MODEL) build/demo

bench: $(MODEL)/model.safetensors ## measure time in forward passes, and peak memory (needs TOKENS)
	python benchmarks/cost.py $(MODEL) $${TOKENS:?set TOKENS=FILE.safetensors:NAME}

solve: install ## measure SparseGPT's solve of one matrix, beside a reference loop
	OMP_NUM_THREADS=1 python benchmarks/solve.py

methods: $(MODEL)/model.safetensors ## run every method at one ratio: perplexity, seconds, memory
	python benchmarks/methods.py $(MODEL) build/methods

agreement: $(MODEL)/model.safetensors ## compare masks and perplexity over instruction sets
	tests/portable.sh 'avx512 avx2 default' '1 2' python benchmarks/agreement.py make $(MODEL) build/agreement
	python benchmarks/agreement.py compare build/agreement

experts: install ## prune experts of a small model that is trained first (needs TEXT)
	OMP_NUM_THREADS=1 python benchmarks/experts.py $${TEXT:?set TEXT to a folder that examples/study/corpus.py has filled} build/experts

shape: install ## measure every method on layers of Llama-3.1-8B's shape (two hours; 25 GB of disk)
	OMP_NUM_THREADS=1 python benchmarks/shape.py build/shape

walk: install ## measure peak memory of layers of 64 experts (needs 5 GB of disk)
	OMP_NUM_THREADS=1 python benchmarks/walk.py build/walk

masks: $(MODEL)/model.safetensors ## compare learned masks with random ones (an hour)
	benchmarks/masks.sh $(MODEL) build/masks

throughput: $(VENV)/demo ## measure training speed, beside a bare loop and the HF Trainer
	python benchmarks/throughput.py

scratch: install ## compare pruned and scratch on a small parent (20 minutes; needs TEXT)
	benchmarks/scratch.sh $${TEXT:?set TEXT to a folder of .txt files} build/scratch

clean: ## remove .venv and build
	rm -rf $(VENV) build
