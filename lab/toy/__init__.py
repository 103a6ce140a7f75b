"""The toy studio: a small model with its data, rewards and reward LoRAs, and the demo made with it."""
