"""What is known of each model family, a row each."""
