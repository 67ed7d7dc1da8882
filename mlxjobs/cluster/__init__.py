"""A scheduler found, checked and put to work; knows no run."""
