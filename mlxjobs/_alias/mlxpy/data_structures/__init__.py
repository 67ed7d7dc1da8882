"""MLXPy's place for artifacts and configurations."""
