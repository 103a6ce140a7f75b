"""Scores of the images of a folder by rewards."""
