"""Citations: which words of the pages an answer rests on.

cite.py      answer, pages -> citations    parts.py     an answer's lines, or its JSON values
tokens.py    what counts as the same       pieces.py    their tokens, as the pages write them
readings.py  the tokens of a page          spelling.py  words that differ in a letter or two
search.py    the longest runs in common    placing.py   where each run is taken to stand
joins.py     runs of several lines         nearness.py  which of several occurrences
"""

from turret_server.pipeline.documents.cite.cite import Citation, cite

__all__ = ["Citation", "cite"]
