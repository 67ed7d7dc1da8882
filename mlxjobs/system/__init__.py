"""The only doors to the machine: files, YAML, processes, commands, the terminal."""
