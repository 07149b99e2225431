"""Training: one loop, its state, journal and signals, and what updates weights."""
