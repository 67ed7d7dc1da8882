"""The code of a run: frozen, compared with what ran, brought back."""
