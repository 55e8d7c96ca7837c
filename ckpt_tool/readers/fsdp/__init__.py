"""Rank files of FSDP."""
