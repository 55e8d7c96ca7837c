"""Folders of torch.distributed.checkpoint, written without torch."""
