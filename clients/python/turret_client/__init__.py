"""A torch-free client for Turret."""
