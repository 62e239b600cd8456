# Each command makes its own virtual environment, installs, builds and runs. PYTHON picks the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := $(shell find csrc -type f 2>/dev/null)

.PHONY: demo test soak lint format bench docs pictures clean

demo: $(VENV)/.built
	rm -rf demo_run
	$(BIN)/advcam-fast demo --out demo_run

# Two processes, each with as many threads as ever: threads that wait must not spin.
test: $(VENV)/.built lint
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not soak" -n 2 --dist loadgroup

soak: $(VENV)/.built
	$(BIN)/python -m pytest -m soak

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.built
	mkdir -p benchmarks/results
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-json=benchmarks/results/cpu.json
	$(BIN)/python -m advcam_fast.bench.table benchmarks/results/cpu.json

# The site, in site/; a warning ends it. Its tools are no part of the other environment.
docs:
	test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet mkdocs-material "mkdocstrings[python]" latex2mathml ruff
	$(VENV)-docs/bin/mkdocs build --strict

# The pictures of the docs; those of the report need a Chromium.
pictures: demo
	mkdir -p docs
	$(BIN)/python -c "from PIL import Image; Image.open('demo_run/pictures/maps.png').save('docs/maps.jpg', quality=88)"
	$(BIN)/python docs/screenshots.py demo_run/run/report docs

# An editable install, since tests run from the root import the folder and not an installed wheel. The build tools are
# installed first, so that it also builds where the machine's own cmake is old.
$(VENV)/.built: pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "setuptools>=77" "pybind11>=2.13" "cmake>=3.28" ninja wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-docs site build dist *.egg-info demo_run advcam_fast/*.so
