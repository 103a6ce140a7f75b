# Each target does its own set-up. PYTHON names the interpreter for the virtual environment, 3.10 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test toy results late-cut bench card-kit clean

demo: $(VENV)/.installed
	$(BIN)/diffusion-blend demo

test: $(VENV)/.installed $(VENV)/.originals
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/comfyui --ignore tests/browser -n 2 --dist worksteal
	$(BIN)/python -m pytest tests/browser
	$(BIN)/python tests/comfyui/run.py

toy: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.make

# All methods side by side on the toy studio, into docs/results.md.
results: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.results

# The base model alone in the last steps, on the toy studio, into docs/results.md.
late-cut: $(VENV)/.installed
	$(BIN)/python -m diffusion_blend.lab.toy.late_cut

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

clean:
	rm -rf $(VENV) build demo_out benchmarks/out
