"""Device residency: one bank per primitive holds what the resident adapters bring of it."""
