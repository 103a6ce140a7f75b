"""Standalone trainers of reward LoRAs: to come. The toy studio's own are in `lab/toy/`."""
