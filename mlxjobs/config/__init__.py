"""What was typed, and the configuration and settings that it makes."""
