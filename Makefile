# Every target sets up what it needs in .venv by itself; a second run of it is instant.
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
FAST := not slow and not shells and not golden and not outside
MODEL := build/smollm2
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help install test portable foreign floors ceilings versions soak outside experiment golden check docs shells demo bench methods agreement masks throughput scratch clean

help: ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[dev]'
	touch $@

$(VENV)/demo: $(VENV)/installed
	$(PIP) -e '.[demo]'
	touch $@

install: $(VENV)/installed ## the package and its tools, into .venv

test: install ## the fast tests
	HF_HUB_OFFLINE=1 pytest -n 2 -m '$(FAST)'

portable: install ## the fast tests under three instruction sets, with 1 and with 2 threads
	tests/portable.sh 'default avx2 avx512' '1 2' pytest -n 2 -m '$(FAST)'

foreign: install ## processes, masks and resumption under another instruction set than this CPU's
	tests/portable.sh foreign 2 pytest -m '$(FAST)' -k 'process or mask or resum or kill or signal or same'

floors: ## the fast tests on the lowest versions that pyproject.toml allows, in build/floors
	mkdir -p build && $(PYTHON) .ci/floors.py >build/floors.txt
	PIP_CONSTRAINT=$(abspath build/floors.txt) $(MAKE) versions test VENV=build/floors TORCH=torch

ceilings: ## the fast tests on the newest versions that the registry has, in build/ceilings
	rm -rf build/ceilings
	$(MAKE) versions test VENV=build/ceilings TORCH=torch

versions: install ## of what the package stands on
	$(BIN)/python .ci/floors.py | cut -d= -f1 | xargs $(BIN)/python -m pip show | grep -E '^(Name|Version)' | cut -d' ' -f2 | paste - -

soak: install ## the long tests, and the whole matrix of methods and families
	HF_HUB_OFFLINE=1 pytest -m 'slow or matrix'

outside: install ## the toy experiment, and the report in a browser (needs chromium)
	HF_HUB_OFFLINE=1 pytest -m outside -rs

experiment: install ## pruned against scratch at toy size: table, figures and report, into build
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(MAKE) -j2 -f examples/experiment/Makefile

golden: $(MODEL)/model.safetensors ## agreement with the official codes (needs PRUNECLI_GOLDEN)
	PRUNECLI_SMOLLM2=$(abspath $(MODEL)) HF_HUB_OFFLINE=1 pytest -m golden -rs

check: install ## lint and types
	ruff check .
	ruff format --check .
	mypy

docs: install ## completions, man pages and the sidecar's schema, from the program itself
	python docs/generate.py

shells: install ## completions in their shells, man pages in man (need bash, zsh, fish, man)
	pytest -m shells

$(MODEL)/model.safetensors: $(VENV)/demo examples/demo/smollm2.py
	mkdir -p $(dir $(MODEL))
	python examples/demo/smollm2.py $(MODEL)
	touch $@

demo: $(MODEL)/model.safetensors ## prune a real Llama by five methods and compare them
	HF_HUB_OFFLINE=1 examples/demo/run.sh $(MODEL) build/demo

bench: $(MODEL)/model.safetensors ## cost of every method as multiples of a forward, and peak memory
	python benchmarks/cost.py $(MODEL) $${TOKENS:?set TOKENS=FILE.safetensors:NAME}

methods: $(MODEL)/model.safetensors ## every method at one ratio: perplexity, seconds, memory
	python benchmarks/methods.py $(MODEL) build/methods

agreement: $(MODEL)/model.safetensors ## masks and perplexity over instruction sets, method by method
	tests/portable.sh 'avx512 avx2 default' '1 2' python benchmarks/agreement.py make $(MODEL) build/agreement
	python benchmarks/agreement.py compare build/agreement

masks: $(MODEL)/model.safetensors ## learned masks against random ones (an hour)
	benchmarks/masks.sh $(MODEL) build/masks

throughput: $(VENV)/demo ## tokens per second of training, against a bare loop and the HF Trainer
	python benchmarks/throughput.py

scratch: install ## pruned against scratch on a small parent of one's own (20 minutes; needs TEXT)
	benchmarks/scratch.sh $${TEXT:?set TEXT to a folder of .txt files} build/scratch

clean: ## everything that was built
	rm -rf $(VENV) build
