"""Checkpoints, and the parameter space they are points of."""
