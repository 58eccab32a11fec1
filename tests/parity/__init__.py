"""Reference trajectories of the published optimizers, and the runner that compares ours to them."""
