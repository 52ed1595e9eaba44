"""Citations: which words of the pages an answer rests on.

cite.py    answer, pages -> citations      parts.py     an answer's lines, or its JSON values
tokens.py  what counts as the same         readings.py  the orders in which a page's words follow
search.py  the longest runs in common      spelling.py  words that differ in a letter or two
nearness.py  which of several occurrences
"""

from turret_server.pipeline.documents.cite.cite import Citation, cite

__all__ = ["Citation", "cite"]
