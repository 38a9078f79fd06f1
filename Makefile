# Two commands: `make demo` and `make test`. Both set up .venv on first use and need no GPU and no model hub.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
DEMO := demo

.PHONY: demo test clean

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[compress,dev]'
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[check]' || \
		echo "tensorrt-rtx does not install here; its checks will be skipped and named as skipped"
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[genai]' || \
		echo "onnxruntime-genai does not install here; its checks will be skipped and named as skipped"
	touch $@

demo: .venv/.installed
	mkdir -p $(DEMO)
	$(BIN)/tokcarve compress tiny --method flowcut --tokens 64 --samples scenes --out $(DEMO)/artifact --force
	$(BIN)/tokcarve export $(DEMO)/artifact
	$(BIN)/tokcarve run $(DEMO)/artifact --image docs/scene.png --prompt "what colour is the circle?"
	$(BIN)/tokcarve profile $(DEMO)/artifact

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n logical --dist worksteal

clean:
	rm -rf $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache
