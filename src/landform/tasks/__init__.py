"""Data, labels, objectives and metrics: the scalar field itself."""
