"""What one command line asks for, and who does it."""
