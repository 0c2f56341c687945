"""What every room may use: errors, paths, progress, platforms, limits, the ways in and out."""
