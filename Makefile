# Everything here works from a fresh clone with no environment active; `make` lists the targets.

PYTHON  ?=
VENV    := .venv
BIN     := $(VENV)/bin
JOBS    ?= 2
ARGS    ?=
PARTS   ?=
WORK    ?=
CHAPTER ?=
TORCH   ?=
REAL    ?=

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup lab reset test test-full test-fast test-browser lint types imports unit notebooks timings memory figures book gpu clean distclean

# An environment that happens to be active must change nothing.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX JUPYTER_PATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JUPYTER_PREFER_ENV_PATH := 1

# $(call heading,what) alone is for pytest, which ends with its own time;
# $(call stage,what,command) is a heading, the command, and how long it took.
heading = @printf '\n== %s ==\n' '$(1)'
define stage
@printf '\n== %s ==\n' '$(1)'; start=$$(date +%s); { $(2); }; code=$$?; \
printf -- '-- %s: %d s\n' '$(1)' $$(( $$(date +%s) - start )); exit $$code
endef

# $(call quoted,text): the text as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'

# $(call extra,name,package): install an extra of pyproject.toml that few readers need, once.
define extra
@want=$$(grep '^$(2)==' constraints.txt); \
$(BIN)/python -m pip freeze 2>/dev/null | grep -qxF "$$want" || \
  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(1)]'
endef

help: ## list the targets
	@echo 'usage: make <target>'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'settings:'
	@echo '  TORCH=cpu     setup: the CPU build of torch, without gigabytes of CUDA libraries (TORCH=default: back)'
	@echo '  REAL=1        setup: and fetch zoo/smollm2, a real model of 135 M parameters (93 MB)'
	@echo '  PYTHON=...    setup: the Python to build .venv with (3.11, 3.12 or 3.13); gpu: the one with CUDA torch'
	@echo '  PARTS="..."   gpu: which parts, of those that make gpu ARGS=--help lists'
	@echo '  WORK=DIR      lab, reset: keep your copies in DIR/work; MINSERVE_WORK in the environment does the same'
	@echo '  CHAPTER=00    reset: the chapter, by number'
	@echo '  ARGS="..."    lab: passed to JupyterLab; book: to its build; unit, test-fast, test-full, test-browser: to pytest; gpu: to the suite'
	@echo '  JOBS=2        unit and test-fast: processes'

setup: ## make .venv with everything lab and test need; refresh it when the pins change
	@TORCH=$(call quoted,$(TORCH)) PYTHON=$(call quoted,$(PYTHON)) sh labs/tools/setup.sh
	@test -z $(call quoted,$(REAL)) || $(BIN)/python -m minserve zoo fetch smollm2

work = $(if $(WORK),--work $(call quoted,$(WORK)))

lab: setup ## open JupyterLab on the start chapter, in your own copies under work/
	@$(BIN)/python labs/open_lab.py $(work) $(if $(ARGS),-- $(ARGS))

reset: setup ## take a fresh copy of one chapter (CHAPTER=00); yours is kept as a backup
	@test -n $(call quoted,$(CHAPTER)) || { echo 'Which chapter? For example: make reset CHAPTER=00' >&2; exit 2; }
	@$(BIN)/python labs/open_lab.py --copy-only $(work) --reset $(call quoted,$(CHAPTER))

test: setup lint types imports unit notebooks ## everything CI runs, but for the browser; matrices and long runs as a sample

# The sample is drawn by a seed that pytest's header shows: make unit ARGS='--sample-seed N' repeats it.
test-full: setup ## the same with nothing left out, and the browser where there is a Chromium; twenty minutes
	@$(BIN)/python -m minserve zoo fetch smollm2 || echo 'So the tests on zoo/smollm2 are left out.'
	@$(MAKE) --no-print-directory lint types imports
	@$(MAKE) --no-print-directory unit ARGS='--full $(ARGS)'
	@$(MAKE) --no-print-directory notebooks
	$(call extra,browser,playwright)
	@if $(BIN)/python tests/browser/chromium.py; then \
	  $(MAKE) --no-print-directory test-browser ARGS='--full $(ARGS)'; \
	else echo 'So the browser tests are left out.'; fi

test-fast: setup ## lint, types, imports, and the tests not marked slow
	@$(MAKE) --no-print-directory lint types imports
	$(call heading,pytest (fast))
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow' $(ARGS)

lint: setup ## ruff: rules and format
	$(call stage,ruff,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: setup ## mypy, strict on minserve/
	$(call stage,mypy,$(BIN)/mypy)

imports: setup ## import-linter: the rooms import one way
	$(call stage,import-linter,$(BIN)/lint-imports --no-logo)

unit: setup ## pytest over tests/
	$(call heading,pytest)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

notebooks: setup ## run every chapter headless and compare the outputs tagged for it
	$(call heading,notebooks)
	@if [ -z "$$(find labs -name '*.ipynb' -not -path '*/.*')" ]; then echo 'no notebooks yet'; exit 0; fi; \
	MINSERVE_HEADLESS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=120 labs

test-browser: setup ## drive the panels in a real JupyterLab (needs Chromium; not part of test)
	$(call heading,browser)
	$(call extra,browser,playwright)
	$(call extra,book,myst-nb)
	@$(BIN)/python tests/browser/chromium.py
	@$(BIN)/python -m pytest tests/browser -m browser --durations=5 $(ARGS)

timings: setup ## measure what a reader waits for, in a real browser (needs Chromium)
	$(call extra,browser,playwright)
	@$(BIN)/python tests/browser/measure.py $(ARGS)

memory: setup ## measure each chapter's peak memory, headless
	@$(BIN)/python labs/tools/memory.py $(ARGS)

figures: setup ## export the chapters' signature figures as SVG (needs Chromium)
	$(call extra,figures,kaleido)
	@$(BIN)/python labs/tools/figures.py $(ARGS)

book: setup ## build the chapters as a static site in build/book, from what was recorded
	$(call extra,book,myst-nb)
	@$(BIN)/python -m book $(ARGS)

# No setup: it takes the Python at hand, because a GPU machine has its own build of torch.
gpu: ## measure everything on a GPU, under nine minutes, into labs/recorded/gpu; installs nothing
	@$(or $(PYTHON),$(wildcard $(BIN)/python),python3) -m minserve.bench.gpu $(PARTS) $(ARGS)

clean: ## remove caches and build products; .venv and work/ stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find minserve widgets tests labs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and remove .venv too; your copies in work/ stay
	rm -rf $(VENV)
