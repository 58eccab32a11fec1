"""Curvature: eigenvalues, traces, densities, sharpness, blocks, with certificates."""
