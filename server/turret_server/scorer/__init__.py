"""Small models beside the served one that score candidates: text in, one number out.

`text` makes token rows, `link` is the server's side of a scorer's process, `process` runs in it.
"""
