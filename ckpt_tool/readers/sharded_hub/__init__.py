"""Hugging Face models whose ranks saved their shards: safetensors files with parts of tensors."""
