# Two commands do everything on a fresh machine with Python 3.11 and pip: `make demo` and `make test`.
SHELL := bash
.SHELLFLAGS := -o pipefail -ec
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/$(if $(shell command -v nvidia-smi),gpu,cpu).lock
# uv does not read pip's configuration, so it is given pip's find-links; without any, torch comes from uv's index of CPU builds.
CPU_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
TORCH_SOURCE := $(if $(findstring cpu,$(LOCK)),$(CPU_TORCH))
SPEED := convert load train scale memory growth startup retrieval neighbour
COMPILE := $(BIN)/uv pip compile --quiet --python-version 3.11 --all-extras --no-emit-find-links --no-header

.PHONY: demo unit test lint bench bench-models chaos lock clean

demo: $(VENV)/.ready  ## MovieLens 1M: fetch, prepare, train both models under Ray, report, index, recommend films to all users
	$(BIN)/python jobs/train_dlrm.py --run-dir runs/demo/dlrm
	$(BIN)/python jobs/train_two_tower.py --run-dir runs/demo/two_tower
	$(BIN)/python jobs/build_index.py --run-dir runs/demo/two_tower
	$(BIN)/python jobs/recommend.py --retriever runs/demo/two_tower --ranker runs/demo/dlrm --users runs/demo/movielens-1m/users.parquet --interactions runs/demo/movielens-1m/interactions.parquet --history recent_items --item-columns title --show 2 --overwrite --out runs/demo/recommendations
	@echo; echo "A page to try it: $(BIN)/python jobs/serve.py --retriever runs/demo/two_tower --ranker runs/demo/dlrm, then open http://127.0.0.1:8000"

unit: $(VENV)/.ready  ## the fast tests, for the edit loop: under a minute
	$(BIN)/python -m pytest -m unit

test: $(VENV)/.ready  ## all tests but the long ones: under twenty minutes
	$(BIN)/python -m pytest

lint: $(VENV)/.ready  ## what .pre-commit-config.yaml runs too: ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready  ## speed compared with the usual recipe and the limit of the machine, appended to benchmarks/results: 16 minutes
	for name in $(SPEED); do echo "== $$name"; $(BIN)/python -m benchmarks.speed.$$name; done
	$(if $(findstring gpu,$(LOCK)),$(BIN)/python -m benchmarks.speed.gpu.dataset runs/bench/gpu)
	$(if $(findstring gpu,$(LOCK)),$(BIN)/python -m benchmarks.speed.gpu runs/bench/gpu)

bench-models: $(VENV)/.ready  ## the quality of the models, and the other benchmarks, one after another: hours
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

chaos: $(VENV)/.ready  ## the long tests, then ten runs under local and ten under Ray, each with a SIGKILL at a random moment: 35 minutes
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m tests.chaos

# The locks are installed with --no-deps: torchrec depends on fbgemm-gpu, which cannot load on a machine without CUDA.
# Compiled to bytecode once, here: a run has a dozen processes, and where Python cannot write its cache each of them would compile
# torch again (importing the trainer took 23 s rather than 7).
$(VENV)/.ready: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --compile-bytecode $(TORCH_SOURCE) --requirement $(LOCK)
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $@

# The lock says torch==2.13.0 without "+cpu", so that every source of that version matches. What is locked keeps its version where
# pyproject.toml allows it; `make lock UPGRADE=--upgrade` takes the newest versions.
lock: $(VENV)/.ready
	for kind in cpu gpu; do cp requirements/$$kind.lock requirements/$$kind.lock.new; done
	$(COMPILE) $(UPGRADE) $(CPU_TORCH) --override requirements/overrides-cpu.txt --output-file requirements/cpu.lock.new pyproject.toml requirements/cpu.in
	sed -i 's/+cpu//' requirements/cpu.lock.new
	$(COMPILE) $(UPGRADE) --override requirements/overrides-gpu.txt --output-file requirements/gpu.lock.new pyproject.toml
	for kind in cpu gpu; do mv requirements/$$kind.lock.new requirements/$$kind.lock; done

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
