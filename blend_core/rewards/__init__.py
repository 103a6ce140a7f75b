"""Rewards that need no weights; the learned ones load their libraries on first use."""
