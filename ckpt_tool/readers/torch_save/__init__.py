"""Archives of torch.save, read without torch and without trust."""
