"""The algorithms: dpok, grpo, draft and dpo, with their losses as pure functions."""
