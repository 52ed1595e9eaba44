"""Make adapters from data, with torch and transformers; nothing here is needed to serve them."""
