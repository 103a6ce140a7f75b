"""The parts of cost.py: networks, ways to sample, clocks, floors, the report. They run inside a ComfyUI."""
