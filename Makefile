# `make demo` and `make test` are all the set-up there is: each creates the environment if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quick docs coverage test-arm bench gpu fuzz format clean

# constraints.txt pins what CI uses, a CPU build of torch among it. With CUDA: make CONSTRAINTS= demo
CONSTRAINTS ?= -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev]"
	touch $@

# A test process that crashes ends the run, and its test is named. If xdist replaced the process under loadfile, it would
# hand out finished files again and wait for ever at the end.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

demo: $(VENV)/.installed
	$(BIN)/effbench run g2_groups --device cpu || test $$? -eq 4  # 4: others disturbed it, and it says so
	$(BIN)/effbench compare mobilenet_v2 shufflenet_v2 --device cpu || test $$? -eq 4

test: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) --nbmake tests notebooks
	$(MAKE) docs

# The pages under docs/ and the API reference, as a site: build/docs/index.html. A warning is an error.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# What a change usually breaks, in less than a minute: closed forms, words of the command line, stored runs, the rule
# that decides, a real run on the CPU. Only files that hold the mark are read.
quick: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PYTEST) -q -m quick $$(grep -rl --include='test_*.py' 'mark\.quick' tests)

# The same tests with coverage, which must reach the floor in pyproject.toml. They take a quarter longer so: CI runs them
# without.
coverage: $(VENV)/.installed
	$(PYTEST) --cov --cov-report=term

# On aarch64 without Arm hardware: a part of the tests, a study and a bundle under qemu-user, in a userland that is made
# in .cache/arm (1.2 GB). Skips in one line where apt or the network is missing. TESTS=FILES for others.
test-arm: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev,onnx,ncnn]" "uv>=0.5"
	$(BIN)/python tests/arm/run.py $(TESTS)

# effbench beside its peers: about an hour, and it goes on where it was stopped. PARTS="spread power" for some of it,
# MACHINE=NAME for another folder of results.
bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev,bench]"
	$(BIN)/python -m benchmarks.peers $(PARTS) $(if $(MACHINE),--machine $(MACHINE))

# What a first quarter of an hour on a GPU must show, with the torch that the machine has: PYTHON=python3 needs no
# installation. OUT=DIR for another folder, the same one goes on; docs/gpu.md reads the page that it ends with.
gpu:
	$(PYTHON) -m benchmarks.gpu --minutes $(or $(MINUTES),12) $(if $(OUT),--out $(OUT)) $(if $(DEVICE),--device $(DEVICE))

# Searches for run files that effbench does not survive. What it finds it names; SECONDS=3600 searches longer.
fuzz: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3"
	$(BIN)/python tests/support/fuzz_loader.py -max_total_time=$(or $(SECONDS),300)

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage* build dist
