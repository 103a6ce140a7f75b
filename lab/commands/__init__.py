"""The commands of diffusion-blend: options and what they print; each loads the work that it calls when it runs."""
