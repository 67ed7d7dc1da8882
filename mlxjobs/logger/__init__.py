"""What a task records and takes back: metrics, artifacts, checkpoints."""
