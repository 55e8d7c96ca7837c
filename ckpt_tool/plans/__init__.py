"""What will be written, before anything is; then how it appears whole or not at all."""
