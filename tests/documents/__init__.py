"""What the pages for users show is what the program does."""
