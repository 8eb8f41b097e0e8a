"""Evidence for or against a dictionary: quality, rivals, stability, recovery of known modes."""
