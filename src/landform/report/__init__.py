"""Figures (matplotlib) and the HTML atlas of results."""
