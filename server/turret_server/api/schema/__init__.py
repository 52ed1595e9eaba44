"""Wire models: what clients send and what they get, one file per family of routes."""
