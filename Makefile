# What a person types. Each target sets up what it needs in .venv, with plain pip and the versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The tests also train a little and talk to servers, so they need the learners (a CPU build of torch: about a minute and 900 MB) and OpenEnv.
TESTS := .venv/.ready-tests
# Ray's RLlib pins a Gymnasium of its own.
RAY := .venv-ray

.PHONY: help demo test test-ray test-clients check format bench docs clean

help:
	@echo "make demo    compare a few engine settings on an hour of traffic like Azure's; ends with a table and out/demo.html"
	@echo "make test    run the tests"
	@echo "make test-ray run the tests that need Ray, in .venv-ray"
	@echo "make test-clients drive the server with aiperf and guidellm, in environments of their own"
	@echo "make check   lint, formatting, types, and which floor may import which"
	@echo "make format  put the code into shape"
	@echo "make bench   run the benchmarks; figures go to out/bench/*.json"
	@echo "make docs    write the generated pages again"

demo: $(READY)
	@mkdir -p out
	$(BIN)/inferencegym simulate --trace azure-conversation --duration 3600 --rate 22 --model llama-3.1-8b --gpu h100 \
		--set engine.max_num_seqs=64,256 --set engine.max_num_batched_tokens=2048,8192 --report out/demo.html

test: $(TESTS)
	$(BIN)/pytest -q

# A cluster of two workers on this machine, in an environment of its own (2 GB, a minute or two to install).
test-ray: $(RAY)/.ready
	$(RAY)/bin/pytest -q -m ray tests/learn/test_ray.py

# aiperf and guidellm, in environments of their own (7 GB together: guidellm wants torch with CUDA; some minutes to install, once a machine).
test-clients: $(TESTS)
	INFERENCEGYM_CLIENTS=1 $(BIN)/pytest -q -s -m clients tests/runtime/test_clients.py

check: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TESTS)
	@mkdir -p out/bench
	@set -e; for script in benchmarks/*.py; do \
		name=$$(basename $$script .py); echo "$$script"; \
		$(BIN)/python $$script --json > out/bench/$$name.json; \
	done; ls out/bench

docs: $(READY)
	$(BIN)/python -m inferencegym.metrics.vocabulary > docs/vocabulary.md
	$(BIN)/python -m inferencegym.engine.invariants > docs/invariants.md
	$(BIN)/python benchmarks/fidelity.py --markdown docs/fidelity.md > out/fidelity.md

clean:
	rm -rf .venv .venv-ray out build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

$(TESTS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,train,openenv,serve,web]'
	@touch $(TESTS)

$(RAY)/.ready: pyproject.toml constraints-ray.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --disable-pip-version-check -c constraints-ray.txt -e '.[ray,train]' pytest hypothesis
	@touch $(RAY)/.ready
