"""The algorithms: dpok, grpo, draft and dpo, one file each, with their losses as pure functions (losses.py)."""
