"""How learners are trained: rows in blocks, gradient descent, checkpoints, many fits as one."""
