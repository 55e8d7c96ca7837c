"""Rank files of Megatron."""
