"""What every room uses: errors, processes and threads, progress, wording."""
