"""condec."""
