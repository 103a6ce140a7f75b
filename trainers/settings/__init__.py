"""Every setting of a training run, its presets, and the TOML files and key=value texts that fill them."""
