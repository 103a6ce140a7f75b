"""LoRA files: what a run writes, and other spellings."""
