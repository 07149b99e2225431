"""Training: the loop, its state, journal and signals, and how weights are updated."""
