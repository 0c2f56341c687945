"""Known vulnerabilities: OSV data over an image's components, and the verdicts on them (VEX)."""
