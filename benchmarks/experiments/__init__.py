"""Experiments: which method answers more questions right, at equal tokens. One command each."""
