"""Curvature at the solution, along the training, and its dependence on the data."""
