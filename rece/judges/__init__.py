"""Judges, one file each: who says what an image shows."""
