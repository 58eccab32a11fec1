"""What a variant perturbs: masks, z-scores, overlaps, alignment, controls."""
