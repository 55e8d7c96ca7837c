"""Hugging Face names ⇄ megatron-core names: one table per family, both directions from each row."""
