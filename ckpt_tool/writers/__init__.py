"""Files that are written whole or not at all: safetensors, torch_dist, staging and the journal."""
