# What a developer, a newcomer and CI run. `make` lists the targets. Nothing here needs root.
# pip's own settings (an index, a folder of wheels) are honoured, as from its configuration or PIP_* variables.

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# The first Python that is new enough; `make PYTHON=/path/to/python3.12 ...` takes another.
PYTHON ?= $(firstword $(foreach name,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(name) -c '$(NEW_ENOUGH)' 2>/dev/null && echo $(name))) python3)

# All that icre/ and its tests need: the method without the cluster.
METHOD := torch numpy pillow simplejpeg scipy scikit-learn pydantic pyyaml pyarrow safetensors matplotlib pytest pytest-timeout hypothesis pytest-xdist
CLUSTER_ONLY := ray s3fs prometheus_client

# $(call install,folder of the virtual environment,what to install): the stamp $@ is touched when pip succeeded.
define install
@echo "Installing ICRE into $(1) (the first time takes some minutes)"
@$(1)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(2)
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test check lint test-method test-cluster test-slow constraints clean

.NOTPARALLEL:

PYTEST := .venv/bin/python -m pytest -rs

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed ## Train, evaluate and report on synthetic people, on this machine
	.venv/bin/icre demo --config configs/demo.yaml

test: lint test-method test-cluster ## Linters, types, import rules, all tests but the slow ones

check: lint test-method ## A part of it: linters, types, the method's tests, one real run
	$(PYTEST) tests/walks/test_road.py

lint: .venv/.installed-dev ## Style, types and the direction of imports
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Three processes that start Rays at once are too many for two cores: Ray gives a node 30 s to come up.
test-cluster: .venv/.installed-dev ## The tests on Ray, object store and local clusters, and the walks
	$(PYTEST) -n 2 --no-loadscope-reorder --ignore=tests/icre -m "not slow"

test-slow: .venv/.installed-dev ## Faults that take minutes: before a release, and where their code was touched
	$(PYTEST) --ignore=tests/icre -m slow

test-method: .venv-method/.installed ## The method's tests where Ray is not installed
	@for module in $(CLUSTER_ONLY); do \
		if .venv-method/bin/python -c "import $$module" 2>/dev/null; then \
			echo "error: .venv-method can import $$module; \`make clean\` and try again" >&2; exit 1; \
		fi; \
	done
	OMP_NUM_THREADS=1 .venv-method/bin/python -m pytest -rs -n 2 --dist loadfile tests/icre --confcutdir=tests/icre

constraints: ## Write constraints.txt anew: the newest versions that fit pyproject.toml, torch as it is named there
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@echo "Installing the newest versions into build/constraints (takes some minutes)"
	@build/constraints/bin/python -m pip install -qq --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" -e '.[dev,aws,gcp]'
	@build/constraints/bin/python -m pip freeze --exclude-editable > build/frozen.txt
	@{ grep '^#' constraints.txt; grep -vE '^(nvidia-|cuda-|triton==)' build/frozen.txt | sed 's/+.*//'; } > build/new.txt
	@mv build/new.txt constraints.txt && rm -r build/constraints build/frozen.txt
	@echo "wrote constraints.txt; run the tests before you commit it"

clean: ## Remove environments, caches and build outputs; storage/ stays
	rm -rf .venv .venv-method build dist *.egg-info .hypothesis .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.venv,-e .)

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(call install,.venv,-e '.[dev]')
	@touch .venv/.installed

.venv-method/.installed: Makefile pyproject.toml constraints.txt | .venv-method/bin/python
	$(call install,.venv-method,$(METHOD))
	@.venv-method/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .

%/bin/python:
	@python='$(PYTHON)'; $$python -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "error: ICRE needs Python 3.11 or newer; $$python is $$($$python --version 2>/dev/null || echo not there)"; \
		echo "hint: install one and name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; } >&2; \
	$$python -m venv $*
	@echo '*' > $*/.gitignore
