"""Training of learners: rows in blocks, gradient descent, checkpoints, many fits as one."""
