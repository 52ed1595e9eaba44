"""Turret: an inference-time adaptation server."""

__version__ = "0.1.0"
