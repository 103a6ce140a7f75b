"""The base model of a run with a LoRA, its sampler as a chain of Gaussians, and the trajectories sampled."""
