"""A page's words as text whose spaces and line breaks keep the layout."""
