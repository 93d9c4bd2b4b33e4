# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= torch,keras,lessons,fast,export,log,dev
STAMP := $(VENV)/.installed
UV_INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
comma := ,
CPU ?=
SIZE := $(if $(filter 1,$(CPU)),Setting up .venv: about 1.5 GB to download and 4 GB on disk if PyTorch's CPU build can be had.,\
  Setting up .venv: about 4 GB to download and 8.5 GB on disk, since PyTorch brings its GPU libraries. CPU=1 asks for its CPU build.)
CONSTRAINTS ?= constraints.txt
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
COMPARE ?= --nbval
NBVAL := $(COMPARE) --nbval-current-env --nbval-cell-timeout 300
# Two test processes on two cores: one thread each, or they trample on each other.
ONE_THREAD := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
# A lesson runs once, in tests/test_lessons.py: unsolved, then its solutions. nbval has the other notebooks.
PYTEST := TRANSFER_COURSE_STRICT=1 $(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
  -p tools.slowest_files --timeout 900 -m "not stress" $(NBVAL) --ignore-glob='nbs/*/[0-9][0-9]*_*.ipynb'

.PHONY: help install demo test test-lib test-lessons stress test-newest lab bench study docs export clean

help:
	@echo "make demo     set up, then fine-tune on the bundled photographs in PyTorch and Keras (about 3 minutes)"
	@echo "make test     set up, then run every test and every lesson"
	@echo "make install  set up only (.venv)        make lab    the lessons in JupyterLab"
	@echo "make study    recompute the records      make bench  speed, ours beside the tutorials'"
	@echo "make docs     the documentation site     make export notebooks -> library, lessons, README"
	@echo "make stress   the long reliability tests make test-newest  every test on the newest releases"

install: $(STAMP)

# uv installs in seconds what pip installs in minutes; where it can't run, pip does the same work.
define with_extras
	@if $(BIN)/uv --version >/dev/null 2>&1; then \
	  echo "installing with uv …"; $(UV_INSTALL) $(PINS) -e '.[$(1)]'; \
	else \
	  echo "installing with pip (some minutes) …"; $(BIN)/python -m pip install --quiet $(PINS) -e '.[$(1)]'; \
	fi
endef

# `make install CPU=1` takes PyTorch's CPU build, a third of the download. Only uv knows where it lies.
define cpu_build
	@if ! $(BIN)/uv --version >/dev/null 2>&1; then \
	  echo "CPU=1 needs uv, which could not be installed; PyTorch's ordinary build is installed instead."; \
	elif ! UV_HTTP_TIMEOUT=60 $(UV_INSTALL) --torch-backend cpu $(PINS) torch torchvision 2>/dev/null; then \
	  echo "PyTorch's CPU builds can't be reached from here; the ordinary build is installed instead."; \
	fi
endef

$(STAMP): settings.ini setup.py constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Say which one to use: make install PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu the package python3-venv brings it."; exit 2; }
	@echo "$(SIZE)"
	@$(BIN)/python -m pip install --quiet uv || true
	$(if $(filter 1,$(CPU)),$(cpu_build))
	$(call with_extras,$(EXTRAS))
	@touch $(STAMP)

demo: install
	$(BIN)/transfer-course demo --out runs/demo

test: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(PYTEST) tests nbs

test-lib: install
	$(PYTEST) tests --ignore tests/test_lessons.py

test-lessons: install
	$(PYTEST) tests/test_lessons.py nbs

# The long forms: a hundred kills, a thousand hostile files, two hundred altered bytes (about an hour).
stress: install
	$(ONE_THREAD) $(BIN)/python -m pytest -q --timeout 3600 -m stress tests

# The newest releases, without constraints, in an environment of their own. Their messages
# and last digits may differ from the stored ones, so nothing is compared.
test-newest:
	rm -rf .venv-newest
	$(MAKE) --no-print-directory test VENV=.venv-newest CONSTRAINTS= COMPARE=--nbval-lax

# In a container: make lab LAB="--allow-root --ip 0.0.0.0"
lab: install
	$(BIN)/transfer-course lab $(LAB)

# The peers of the bench that nothing else needs, after everything else.
$(VENV)/.bench: $(STAMP)
	$(call with_extras,$(EXTRAS)$(comma)bench)
	@touch $@

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/latency.py

# FINAL=1 opens the sealed part, once, for the claims page.
study: install
	$(BIN)/python -c "from transfer_course.practice.tuning import study_tuning; print(study_tuning('photos', final=$(if $(FINAL),True,False)))"
	$(BIN)/python -c "from transfer_course.practice.tuning import study_tuning; print(study_tuning('drawings', final=$(if $(FINAL),True,False)))"
	$(BIN)/python -c "from transfer_course.practice.photo_budget import study_photo_budget; print(study_photo_budget())"
	$(BIN)/python -c "from transfer_course.practice.label_curves import study_label_curves; print(*map(study_label_curves, ('photos', 'drawings')))"
	$(BIN)/python -c "from transfer_course.practice.coverage import study_coverage; print(study_coverage())"
	$(BIN)/python -c "from transfer_course.practice.letters import study_letters; print(study_letters())"
	$(BIN)/python -c "from transfer_course.practice.clinic_torch import study_blocks; print(study_blocks())"
	$(BIN)/python -c "from transfer_course.practice.auto_study import study_auto; print(study_auto())"
	$(BIN)/python -c "from transfer_course.practice.discrepancy_study import study_discrepancy; print(study_discrepancy())"
	$(BIN)/python -c "from transfer_course.practice.schedules_study import study_schedules; print(study_schedules())"
	$(BIN)/python -c "from transfer_course.practice.explain_study import study_explain; print(study_explain())"
	$(BIN)/python -c "from transfer_course.practice.calibrate_study import study_calibrate; print(*map(study_calibrate, ('leak', 'shift')))"
	$(BIN)/python -c "from transfer_course.practice.layers_study import study_layers; print(study_layers())"
	$(BIN)/python -c "from transfer_course.practice.transferability_study import study_transferability; print(study_transferability())"

docs: install
	$(BIN)/python tools/docs_site.py

export: install
	$(BIN)/python tools/notebooks.py export

clean:
	rm -rf out build dist runs *.egg-info
