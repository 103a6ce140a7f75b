"""Plots that nodes and commands show: paper.py to draw on, diagnosis.py, pareto.py."""
