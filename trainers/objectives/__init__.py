"""The algorithms: dpok, grpo, draft, dpo and distil, one file each, with their losses as pure functions (losses.py)."""
