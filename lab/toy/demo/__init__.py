"""The demo: the studio sampled over sweeps (run), what comes of it (points), and its pictures."""
