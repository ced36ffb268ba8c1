"""Holdfast keeps Docker's state, volumes and images, in one bucket and brings it back."""

__version__ = "0.1.0"
