"""What every room may use: errors, paths, progress, platforms."""
