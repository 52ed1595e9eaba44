"""Tasks: what is asked of a document, and how the answer is read."""
