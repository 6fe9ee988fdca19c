# `make demo` runs the main job, `make test` the checks; both install what they need. `make bench` measures; `make gpu`
# checks and measures on a GPU.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo install test presets lint schema bench gpu slurm-profile

install: .venv/demo

demo: .venv/demo
	$(BIN)/snakemake
	@cat results/demo/summary.txt
	@echo "Report: $(CURDIR)/results/demo/report.html"

test: .venv/test lint
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

presets: .venv/test
	$(BIN)/pytest -m presets

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/pyright
	$(BIN)/snakemake --lint

schema: .venv/demo
	$(BIN)/python -c "import json; from fusion.config import schema; print(json.dumps(schema(), indent=2))" > config/schema.json

slurm-profile:
	@profiles=$${XDG_CONFIG_HOME:-$$HOME/.config}/snakemake; link=$$profiles/slurm; \
	if [ "$$(readlink "$$link")" = "$(CURDIR)/profiles/slurm" ]; then echo "$$link is there already"; \
	elif [ -e "$$link" ] || [ -L "$$link" ]; then \
	  echo "$$link is there already and is not of this project; it was left as it is." >&2; \
	  echo "Use snakemake --profile profiles/slurm, or move it away first." >&2; exit 1; \
	else mkdir -p "$$profiles" && ln -s "$(CURDIR)/profiles/slurm" "$$link" && echo "linked $$link"; fi

bench: .venv/demo
	$(BIN)/python benchmarks/plan.py
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/merging.py
	$(BIN)/python benchmarks/concrete.py
	$(BIN)/python benchmarks/linearized.py
	$(BIN)/python benchmarks/at_size.py
	$(BIN)/python benchmarks/large.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/pixels.py
	$(BIN)/python benchmarks/slurm.py
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/table.py

gpu: .venv/test
	$(BIN)/python benchmarks/gpu.py  # first: a test that fails would end it all
	$(BIN)/pytest -m gpu -rs tests/test_gpu.py

.venv/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: torch and its like are several GB, which takes minutes"
	$(BIN)/python -m pip install -e .
	touch $@

.venv/test: .venv/demo
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@
