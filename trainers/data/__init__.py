"""Prompts and preference pairs, and which of them an epoch is made of."""
