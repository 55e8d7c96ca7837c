"""Output in an object store: nothing of it lies on a local disk, nothing is seen before the end."""
