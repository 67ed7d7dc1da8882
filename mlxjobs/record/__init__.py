"""A run as it is on the disk: its folder, its events, and what keeps attempts apart."""
