"""One module per cluster: what it calls things, what its commands are, how its output reads."""
