"""Somebody else opens what is written: transformers, megatron-core."""
