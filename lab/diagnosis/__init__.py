"""How far the bases of a blend disagree, and the gap that a blend neglects, measured on a run."""
