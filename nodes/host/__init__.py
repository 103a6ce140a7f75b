"""Everything that touches ComfyUI's machinery: its model patchers, samplers, memory and what it keeps to itself."""
