"""Comparing tensors: what differs, by how much, and which known cause explains it."""
