# Two commands on a fresh machine, which need Python 3.11+ and make alone:
#
#   make run    install, train ViT-22B-Ti on digits, evaluate, write a report
#   make test   install what tests need and run those that take minutes at most
#
#   make run-translation   the same for a ViTUnet: apples to oranges and back
#
# Everything lands in .venv; what is done already is not done again.
#
#   make run EXTRA=cuda12        with the extra of setup.cfg that you choose;
#                                EXTRA= for the CPU
#   make run PYTHON=python3.12   with another Python, in a new VENV=...

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
  && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet

# jax's extra: an NVIDIA driver asks for CUDA (from 580 on for 13), a Google PCI
# device together with an accelerator node for a TPU; anything else is a CPU.
EXTRA ?= $(shell \
  driver=$$( (cat /proc/driver/nvidia/version || nvidia-smi) 2>/dev/null \
    | grep -oE '[0-9]{3}\.[0-9.]+' | head -n 1); \
  if [ "$${driver%%.*}" -ge 580 ] 2>/dev/null; then \
    echo cuda13; \
  elif [ -n "$$driver" ]; then \
    echo cuda12; \
  elif ls /dev/accel[0-9]* /dev/vfio/[0-9]* 2>/dev/null | grep -q . && \
    grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; then \
    echo tpu; \
  fi)

# Which torch the peers get. PyTorch's own registry has CPU builds, without 5 GB
# of CUDA: TORCH='--index-url https://download.pytorch.org/whl/cpu
# --extra-index-url https://pypi.org/simple torch torchvision'
TORCH ?= torch==2.13.0

WORKERS ?= 2
# A file's tests stay on one worker and share what they compiled.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=10

.PHONY: help run run-translation experiments report test test-slow test-all lint clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,12p
	@echo
	@echo '  make report     compare the runs in runs/ on one page, or RUNS="runs/a runs/b"'
	@echo '  make test-slow  the other tests, with torch, timm, libtpu, XLA for GPUs; Chromium if present'
	@echo '  make test-all   all tests, as users run: compiled with optimizations'
	@echo '  make experiments  the tables and figures of the paper, and how far each is'
	@echo '  make lint       ruff: rules and format'
	@echo '  make clean      remove $(VENV), caches and build files, not runs/'

run: $(VENV)/.installed$(EXTRA:%=-%)
	$(BIN)/python main.py --config=configs/digits_vit22b_ti.py

run-translation: $(VENV)/.installed$(EXTRA:%=-%)
	$(BIN)/python main.py --config=configs/fruit_vitunet_ti.py

experiments: $(VENV)/.installed
	$(BIN)/python -m experiments.catalogue

# Of runs/*, those that hold a run.
RUNS ?= runs/*
NOTHING =
COMMA = ,
report: $(VENV)/.installed$(EXTRA:%=-%)
	@$(BIN)/python main.py --mode=report \
	  --workdirs='$(subst $(NOTHING) $(NOTHING),$(COMMA),$(strip $(RUNS)))'

# Most of the time goes into compiling programs that run once: without LLVM's
# optimizations here, with them in test-all, which repeats these tests.
test: $(VENV)/.installed-test
	XLA_FLAGS=--xla_backend_optimization_level=0 $(PYTEST) -m 'not slow'

test-slow: $(VENV)/.installed-peers $(VENV)/.installed-compiler
	$(PYTEST) -m slow

test-all: $(VENV)/.installed-peers $(VENV)/.installed-compiler
	$(PYTEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info

$(BIN)/python:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	|| { echo "error: Python 3.11 or newer is needed, and" \
	"$(if $(PYTHON),'$(PYTHON)' is not,there is none on PATH); give one with" \
	"make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras, so that a changed setup.cfg installs again.
REQUIREMENTS = setup.cfg pyproject.toml

$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing into $(VENV); the first time takes minutes.'
	$(INSTALL) -e '.[tensorflow]'
	@touch $@

$(VENV)/.installed-%: $(REQUIREMENTS) | $(BIN)/python
	@echo 'Installing [$*] into $(VENV); the first time takes minutes.'
	$(INSTALL) -e '.[tensorflow,$*]'
	@touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-test
	@echo 'Installing [peers] into $(VENV); the first time takes minutes.'
	$(INSTALL) -e '.[peers]' $(TORCH)
	@touch $@

# The compilers for TPUs and GPUs that this jax is made for, on Linux alone.
$(VENV)/.installed-compiler: $(VENV)/.installed-test
	@echo 'Installing [tpu,plan-gpu] into $(VENV).'
	@[ "$$(uname -sm)" != 'Linux x86_64' ] || $(INSTALL) -e '.[tpu,plan-gpu]'
	@touch $@
