# The commands that a newcomer needs. Each makes the environment first when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: book test experiment bench lock clean
.DELETE_ON_ERROR:

book: .venv/.ready ## execute the chapters and build the HTML into _build/book/_build/html
	$(BIN)/python book/build.py

test: .venv/.ready ## lint, types, tests and the share of branches that they reach
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov

experiment: .venv/.ready ## the model's best guidance, on tuning prompts; then the paper's ablation, 1,000 prompts; goes on where it was stopped
	$(BIN)/asddim evaluate --out results/tune --prompts bundled-tune --count 256 --steps 20 --methods ddim-trailing --guidance-scale 1.5,2,3,4,5
	for scale in 7.5 3; do for steps in 20 50 100; do \
	  $(BIN)/asddim evaluate --out results/guidance-$$scale/steps-$$steps --guidance-scale $$scale --steps $$steps || exit 1; \
	done; done

bench: .venv/.ready ## step() against diffusers' DDIM, cost of the estimators, time of 1,000 images
	$(BIN)/python -m tests.bench

lock: ## pins everything that an environment made from pyproject.toml holds today
	$(PYTHON) -m venv _build/lock
	_build/lock/bin/pip install -q 'torch==2.13.0' -e '.[book,train,dev]'
	_build/lock/bin/pip freeze --exclude-editable --exclude torch > requirements.lock
	echo 'torch==2.13.0' >> requirements.lock
	{ printf 'name: asddim\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n'; sed 's/^/    - /' requirements.lock; } > environment.yml

.venv/.ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean: ## what the other commands made, but for records
	rm -rf _build dist .venv .pytest_cache .mypy_cache .ruff_cache
