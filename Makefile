# Two commands: `make video` renders a first video, `make test` runs the tests. Both install what
# they need into .venv from this project's own files, once.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PROMPT := two blue squares bounce up and down on a beige background

.PHONY: video test test-most test-ray lint openapi

video: .venv/installed
	@mkdir -p videos
	@$(BIN)/longreel render "$(PROMPT)" --preset shapes --frames 257 parallel.num_stages=2 -o videos/first.mp4

# tests and the processes they start by the hundred import the same files, which are compiled once
test-most test-ray: export PYTHONDONTWRITEBYTECODE =

# tests over Ray mostly wait for processes that start, so the others run beside them
test: .venv/installed-dev
	@$(MAKE) --jobs 2 --output-sync=target test-most test-ray

test-most: .venv/installed-dev
	$(BIN)/pytest -m "not gpu and not slow and not ray" -n 2 --dist loadfile --no-loadscope-reorder

# from the files that name the marker, so that no other is imported
test-ray: .venv/installed-dev
	$(BIN)/pytest -m "ray and not gpu and not slow" $$(grep -rl "mark\.ray" tests --include="test_*.py")

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# what the server's API is, kept beside the code that it is made of
openapi: .venv/installed-dev
	$(BIN)/python -P -m longreel.jobs.serve.openapi docs/openapi.json

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e '.[dev]'
	@touch $@
