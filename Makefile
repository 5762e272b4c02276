# Every verb of the project. `make demo` and `make test` do all that they need first: virtual environment, pinned
# requirements, compiled kernels. Once installed, nothing here needs the network.
#
#   make demo TORCH="torch==2.13.0 --index-url ..."   another torch build (for example one with CUDA)
#   make test PYTEST_ARGS="-k deform -x"              a part of the tests

PYTHON ?= python3
TORCH_RELEASE := torch==2.13.0
TORCH ?= $(TORCH_RELEASE)
# Of that release's wheel for CPUs (Linux, Python 3.11) on PyTorch's own index; the package index says its own.
TORCH_CPU_SHA256 := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b
VENV ?= .venv
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST_ARGS ?=
ROWS ?=
DETECTRON2 ?=
DETREX ?=
UPSTREAM_VENV ?= build/upstream/venv
GPU_WHEELS ?= build/gpu-wheels
GPU_BUNDLE ?= build/gpu-check.tar
GPU_THERE ?=
GPU_RECORD ?= output/gpu-check.json

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.stamp-installed
DOCS_INSTALLED := $(VENV)/.stamp-docs
BUILT := $(VENV)/.stamp-built
BUILD_SOURCES := setup.py pyproject.toml tokendetr.pth tokendetr_startup.py $(addprefix standalone/,setup.py pyproject.toml tokendetr_standalone.pth) $(shell find csrc -type f -not -path '*/__pycache__/*')

C_SOURCES = $(shell find csrc benchmarks tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.DEFAULT_GOAL := help
.PHONY: help build demo docs test test-slow test-upstream nightly lint format bench cuda-check gpu-wheels gpu-check sanitize lock clean

help:
	@echo "make demo | docs | test | test-slow | test-upstream | nightly | lint | format | build | bench | cuda-check | gpu-wheels | gpu-check | sanitize | lock | clean"

# What torch needs on every platform is locked with the rest. Its own wheel is looked up in requirements-torch.txt before
# anything of it runs; another one than the default (TORCH=...) is not. An index without hashes leaves nothing to look up.
CHECK_TORCH := import json, sys; known = open("requirements-torch.txt").read(); \
	found = [i["download_info"] for i in json.load(open(sys.argv[1]))["install"] if i["metadata"]["name"] == "torch"]; \
	hashes = {i["url"]: i["archive_info"].get("hashes", {}).get("sha256") for i in found}; \
	[print(f"the package index names no hash of {url}: it was not compared") for url in hashes if not hashes[url]]; \
	bad = [url for url in hashes if hashes[url] and hashes[url] not in known]; \
	sys.exit(f"{bad[0]} has none of the hashes in requirements-torch.txt" if bad else 0)
$(INSTALLED): requirements.txt requirements-dev.txt requirements-torch.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --report $(VENV)/torch.json $(TORCH)
	$(if $(filter $(TORCH_RELEASE),$(TORCH)),$(PY) -c '$(CHECK_TORCH)' $(VENV)/torch.json)
	touch $@

# Writes requirements*.txt anew: all packages with their hashes, from requirements*.in and the package index.
LOCK := build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --system-certs
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(LOCK) requirements.in --output-file requirements.txt
	$(LOCK) requirements-dev.in --constraint requirements.txt --output-file requirements-dev.txt
	$(LOCK) requirements-docs.in --constraint requirements.txt --constraint requirements-dev.txt --output-file requirements-docs.txt
	echo $(TORCH_RELEASE) | $(LOCK) - --no-deps --no-annotate > build/lock/torch
	printf '%s \\\n    --hash=sha256:%s\n' "$$(cat build/lock/torch)" $(TORCH_CPU_SHA256) > requirements-torch.txt

$(BUILT): $(INSTALLED) $(BUILD_SOURCES)
	MAX_JOBS=$(JOBS) $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		--editable . --editable ./standalone
	touch $@

build: $(BUILT)

demo: $(BUILT)
	$(PY) tools/run_demo.py

$(DOCS_INSTALLED): $(BUILT) requirements-docs.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	touch $@

# Warnings are errors; the notebook is run. No network once installed.
docs: $(DOCS_INSTALLED)
	$(PY) -m sphinx -q -W --keep-going -c docs . build/docs
	@echo "open build/docs/docs/index.html"

lint: $(BUILT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(C_SOURCES)
	$(PY) -m mypy

format: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_SOURCES)

test: $(BUILT) lint cuda-check
	$(PY) -m pytest -n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

test-slow: $(BUILT)
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

# Beside the real packages: make test-upstream DETECTRON2=checkout DETREX=checkout [UPSTREAM_VENV=an environment that has both].
test-upstream:
	$(PYTHON) -m tests.upstream --detectron2 "$(DETECTRON2)" --detrex "$(DETREX)" --venv $(UPSTREAM_VENV) \
		-n $(JOBS) --dist loadgroup $(PYTEST_ARGS)

# Figures of docs/reliability.md; ROWS=TR1,DA1 runs some.
nightly: $(BUILT)
	$(PY) -m tests.reliability --rows "$(ROWS)"

cuda-check: $(BUILT)
	$(PY) csrc/check_cuda.py

# On a machine with network, for one without: the wheels that gpu-check needs there, and GPU_BUNDLE, one file of them
# and the tree. GPU_THERE=FILE names what the other machine has (its `pip freeze`), which is left out.
gpu-wheels: $(INSTALLED)
	$(PY) benchmarks/gpu_wheels.py $(GPU_WHEELS) --bundle $(GPU_BUNDLE) $(if $(GPU_THERE),--there $(GPU_THERE))

# On a machine with a GPU, PyTorch with CUDA and nvcc, no network, no `make build`: everything in 9 minutes.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --json $(GPU_RECORD) --wheels $(GPU_WHEELS)

sanitize: $(BUILT)
	PYTHON=$(PY) sh csrc/sanitize.sh

bench: $(BUILT)
	$(PY) benchmarks/ms_deform_attn.py
	$(PY) benchmarks/packed_attention.py
	$(PY) benchmarks/dino_inference.py
	$(PY) benchmarks/spt_inference.py

clean:
	rm -rf build standalone/build *.egg-info standalone/*.egg-info tokendetr/*.so tokendetr/libtokendetr_ops.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
