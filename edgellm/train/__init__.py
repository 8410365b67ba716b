"""Training where the model runs: examples from files, learning, and what comes of it."""
