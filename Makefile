# make study · plan · status · report · figures · weights · lab · test · bench. Each installs what it needs.
#
#   make study                                     the demo grid, on phantoms
#   make study GRID=pocket DATA=folder WEIGHTS=folder
#   make study GRID=pocket ONLY=failed             run again only what has failed
#   make plan GRID=paper                           what would run, why, and about how long it takes
#   make status GRID=pocket                        what is done, running, failed, stale, missing

GRID ?= demo
DATA ?=
WEIGHTS ?=
CORES ?= all
PROFILE ?=
ONLY ?=
JOBS_PER_GPU ?= 1
export GRID
PYTHON ?= python3

BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
ifneq ($(DATA),)
export MEDLIB_DATA := $(abspath $(DATA))
endif
ifneq ($(WEIGHTS),)
export MEDLIB_WEIGHTS := $(abspath $(WEIGHTS))
endif
export MEDLIB_JOBS_PER_GPU := $(JOBS_PER_GPU)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
LICENCES = .venv/tools/bin/pip-licenses --python=$(BIN)/python --from=mixed --with-system --ignore-packages medlib \
	--format=markdown --order=name
# Git keeps no output of a notebook: see .gitattributes.
FILTER = git config filter.nbstripout
# A command that runs alone uses all cores, unless you have set OMP_NUM_THREADS.
ALL_CORES = $(if $(filter file,$(origin OMP_NUM_THREADS)),env -u OMP_NUM_THREADS)
# Jobs are processes: one thread each is faster than several that wait for each other.
export OMP_NUM_THREADS ?= 1
# glibc keeps freed memory. By default it would return and allocate each batch's activations again.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 4294967296

BENCHMARKS = bootstrap decode extraction finetuning frozen_study memory probes redraws scale

STUDY = python -m medlib.grid.study
# With a profile, jobs run on other machines: the cores of this one do not limit them.
WHERE = $(if $(PROFILE),--profile profiles/$(PROFILE),--cores $(CORES))
RUN = $(STUDY) run "$$GRID" $(WHERE) $(if $(filter failed,$(ONLY)),--only-failed)
SINCE = $$(( ($$(date +%s) - start) / 60 )) min $$(( ($$(date +%s) - start) % 60 )) s

.PHONY: study plan status report figures weights lab test test-slurm test-attack test-lab bench lock
.DEFAULT_GOAL := help
.SILENT:

help:
	sed -n 's/^# \{0,1\}//p' Makefile | head -7

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make … PYTHON=python3.12")'
	echo "Installing into .venv, once: 2 to 5 minutes, 5 GB …"
	start=$$(date +%s); $(PYTHON) -m venv .venv \
		&& $(PIP) --require-hashes -r requirements.lock \
		&& $(PIP) --no-deps --no-build-isolation -e . \
		&& if git rev-parse --git-dir >/dev/null 2>&1; then \
			$(FILTER).clean "'$(CURDIR)/$(BIN)/nbstripout' --keep-id" \
			&& $(FILTER).smudge cat && $(FILTER).required true; fi \
		&& touch $@ && echo "Installed in $(SINCE)."

study: $(READY)
	$(RUN) || { echo "Grid '$$GRID' is not complete. What ran is kept: call the same command again to continue."; exit 1; }

plan status report: $(READY)
	$(STUDY) $@ "$$GRID"

# Needs a network: fetches all weights of a grid into the folder WEIGHTS.
weights: $(READY)
	$(STUDY) weights "$$GRID" $(if $(WEIGHTS),"$(abspath $(WEIGHTS))")

figures: $(READY)
	$(STUDY) figures "$$GRID" $(WHERE)

test: $(READY)
	start=$$(date +%s); echo "Lint, then tests: 10 to 20 minutes on two cores."; \
	ruff check . && ruff format --check . && pytest -q -n auto --dist loadgroup -m "not bench" && echo "Tests passed in $(SINCE)."

test-attack: $(READY)
	echo "A small grid, killed, stopped, failed and short of disk at random moments: 15 to 40 minutes on two cores."
	MEDLIB_ATTACKS=20 pytest -q -s tests/grid/test_attack.py

test-lab: $(READY)
	echo "All notebooks of a complete grid in JupyterLab, and its report, in Chromium: 6 to 15 minutes on two cores."
	$(PYTHON) -m venv .venv/tools && .venv/tools/bin/pip install --quiet selenium==4.51.0
	npm install --silent --no-fund --no-audit --prefix .venv/tools axe-core@4.14.1
	.venv/tools/bin/python tests/lab_browser.py "$$GRID"
	.venv/tools/bin/python tests/report_browser.py "figures/$$GRID/report.html"

test-slurm: $(READY)
	echo "A slice of a grid through a real Slurm of one node: 3 to 6 minutes on two cores."
	python tests/slurm_node.py

lab: $(READY)
	$(ALL_CORES) python -m medlib.grid.lab $(if $(filter file,$(origin GRID)),,"$$GRID") $(ARGS)

# After a change of requirements.txt: every package that it brings, with hashes, and their licences.
lock: $(READY)
	$(PYTHON) -m venv .venv/tools && .venv/tools/bin/pip install --quiet uv==0.13.9 pip-licenses==5.5.5
	grep -v '^-e' requirements.txt | .venv/tools/bin/uv pip compile - --quiet --universal \
		--python-version 3.11 --generate-hashes --no-header --output-file requirements.lock
	$(PIP) --require-hashes -r requirements.lock && touch $(READY)
	printf '# Licences of all installed packages, as they state them\n\n' > licences.md
	printf 'Made by pip-licenses (make lock).\n\n## Not permissive, or not stated\n\n' >> licences.md
	$(LICENCES) | sed -n '1,2p; /GPL\|MPL\|Mozilla\|NVIDIA\|UNKNOWN/p' >> licences.md
	printf '\n## All\n\n' >> licences.md
	$(LICENCES) >> licences.md

bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	pytest -q -m bench tests/test_benchmarks.py
	for name in $(BENCHMARKS); do \
		echo "$$name"; env -u OMP_NUM_THREADS python benchmarks/$$name.py || exit 1; \
	done
	python benchmarks/figure.py
