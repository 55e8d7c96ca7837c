"""Lazy tensors: where elements lie, and how they are read, cast and compared."""
