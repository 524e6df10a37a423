"""What becomes of a new version on a device: tried, adopted or refused, and trained on."""
