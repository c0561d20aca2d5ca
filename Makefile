SHELL := /bin/bash
PYTHON ?= python3

# Every recipe uses this checkout: its environment, and its code in notebook kernels.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
export DIFFUSERS_VERBOSITY := error
export TRANSFORMERS_VERBOSITY := error
demo repro fair arena audits site project data paper bench lab: export PYTHONWARNINGS := ignore
# Idle threads sleep: on a busy machine spinning ones make the small model ten times slower.
export OMP_WAIT_POLICY ?= passive
paper: export HF_HUB_OFFLINE := 0
paper: export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo repro fair arena audits site project paper test bench drill lab lint format data clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

setup: .venv/.installed  ## create .venv and install everything, in the versions of .ci/constraints.txt
	@:

.venv/.installed: pyproject.toml .ci/constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv, about two minutes:'
	@set -o pipefail; python -m pip install --disable-pip-version-check --progress-bar off --constraint .ci/constraints.txt \
	    --editable '.[study,course,dev,data,cluster,site,browser]' \
	    | sed -un 's/^Collecting \([^ ]*\).*/  \1/p; /^Installing collected/s/:.*/ …/p'
	@# Kernels otherwise warn about TCP at every start of a stage.
	@mkdir -p .venv/etc/ipython
	@echo 'c.IPKernelApp.log_level = "ERROR"' > .venv/etc/ipython/ipython_kernel_config.py
	@touch $@

demo: setup  ## erase the dog from the embedded model, and draw it before and after (half a minute)
	@python -m rece.study.demo

repro: setup  ## run what changed since the last run: erase, attack, evaluate, plot
	@test -e results/demo.png || python -m rece.study.demo
	@# A zip of the repository has no .git, without which DVC otherwise refuses to work.
	@test -e .git || grep -qs no_scm .dvc/config.local || printf '[core]\n    no_scm = true\n' >> .dvc/config.local
	@dvc repro

# DVC downloads the prompts, and the hub's models come with the first run. data/paper is a DVC project of its own, which
# takes compiled files in rece/ for changed code.
paper: setup  ## a table of the paper on a GPU: TABLE=nudity, unsafe, 'artist-*', 'object-*' (data/paper/README.md)
	@test -n "$(TABLE)" || { echo "say which: make paper TABLE=nudity" >&2; exit 2; }
	@find rece -name __pycache__ -prune -exec rm -r {} +
	@dvc --cd data/paper pull --recursive prompts
	@dvc --cd data/paper repro --glob 'evaluate@$(TABLE)'
	@dvc --cd data/paper repro --single-item --force plot

test: setup  ## run the tests, and every notebook with its default parameters
	@test -e .git || { echo 'The tests ask git for the files of the project. A zip has no .git: run `git init`.' >&2; exit 2; }
	@rm -rf .cache/smoke # else the notebooks that train go on with what an earlier run trained
	@pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 300 --nbval-kernel-startup-timeout 120 \
	    tests notebooks/*.ipynb notebooks/course/*.ipynb

bench: setup  ## time solver, certificate and attacks against their literal forms; compare bits; count the paper's work
	@python tests/bench/edit.py
	@PYTHONPATH=tests python -m bench.guard
	@python tests/bench/redteam.py
	@python tests/bench/bits.py
	@python data/paper/cost.py

drill: setup  ## try to break everything, a thousand ways, and count what happens (two minutes)
	@PYTHONPATH=.:tests python tests/drill.py

lab: setup  ## open the notebooks
	@jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

lint: setup  ## check style, notebooks too, and that imports point one way
	@ruff check --quiet
	@ruff format --check --quiet
	@lint-imports --no-logo > .lint-imports || { cat .lint-imports; exit 1; }

format: setup  ## fix what lint can fix, and strip the stage notebooks
	@ruff check --quiet --fix
	@ruff format --quiet
	@nbstripout $(filter-out notebooks/guarded.ipynb,$(wildcard notebooks/*.ipynb))

# Frozen stages: `dvc repro` takes their outputs from git. `dvc unfreeze` would rewrite the file and lose its layout and
# comments.
thaw = trap 'mv $(1).frozen $(1)' EXIT; sed -i.frozen '/^ *frozen: true/d' $(1)
TERMS := notebooks/dvc.yaml

fair: setup  ## rerun the fair study and its limits, also in git (an hour and three quarters on two cores with bfloat16)
	@$(call thaw,$(TERMS)); dvc repro $(TERMS):choose $(TERMS):fair $(TERMS):limits

arena: setup  ## rerun the field's methods beside it, also in git (about five hours on two cores); METHOD=esd_x reruns one
	@$(call thaw,$(TERMS)); dvc repro --single-item $(TERMS):rival$(METHOD:%=@%) && dvc repro --single-item $(TERMS):arena

audits: setup  ## rerun what is left for someone who holds more, also in git (three to four hours); AUDIT=noise reruns one
	@$(call thaw,$(TERMS)); dvc repro --single-item $(TERMS):audit$(AUDIT:%=@%) && dvc repro --single-item audits

site: setup  ## build the site into .cache/site/html: the course, the study, the library
	@python notebooks/site/build.py

project: setup  ## measure the method and the attack in notebooks/course/mine beside ours (a minute); CONCEPT=horse
	@python -m rece.course project --concept $(or $(CONCEPT),church)

data: setup  ## rebuild the embedded model from its images (hours; needs npm)
	@$(call thaw,dvc.yaml); dvc repro pretrain judge control

clean:  ## remove results and caches; .venv and DVC's cache stay
	@rm -rf .cache/study dvc_plots .hypothesis .pytest_cache .ruff_cache
	@git clean -qfdX notebooks rece results tests
