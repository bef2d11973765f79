"""The field along lines: barriers, gaps, basins."""
