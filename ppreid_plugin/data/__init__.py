"""Data sets: the generated pedestrians."""
