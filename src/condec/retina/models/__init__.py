"""Models of the retina: published networks, their checkpoints, and a circuit that is known."""
