"""MLXPy's place for ready-made artifacts."""
