"""What lies in object stores and behind URLs, read by ranges of bytes."""
