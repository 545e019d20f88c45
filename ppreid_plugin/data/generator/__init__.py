"""Draws pedestrians: who they are, how they stand, which camera looks, and what is written."""
