"""Whether to believe a dictionary: quality, rivals, stability, recovery of known modes."""
