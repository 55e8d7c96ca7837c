"""Names and configs: from what a training framework holds in memory to what the Hub has."""
