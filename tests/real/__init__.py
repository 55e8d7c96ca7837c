"""Writers of real checkpoints: what the tests read is written by the real frameworks, not by us."""
