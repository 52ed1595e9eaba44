"""Adapters of Turret: published formats become components, components live in banks."""
