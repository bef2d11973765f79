"""The value of the field at a point: losses, metrics, the per-example log."""
