"""ComfyUI's networks: what a LoRA may address in them, which rows and caches they mix, and whole ones as bases."""
