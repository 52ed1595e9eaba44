"""A page's words as text whose spaces and line breaks keep the layout.

frame      words -> upright boxes, a frame for each direction of reading
lines      boxes -> lines, rid of their tilt
phrases    lines -> phrases, cells of a table among them; corridors: which gaps go on
prose      lines -> what is read down before what stands beside it
blocks     lines -> what shares columns
columns    a block's phrases -> the columns they are printed at
bidi       a phrase's words -> the order they are read in
turret     all of these, and the text; latin, plain: what it is compared with
"""

from turret_server.pipeline.documents.layout.latin import lay_out_latin
from turret_server.pipeline.documents.layout.options import LayoutOptions, Mode
from turret_server.pipeline.documents.layout.plain import lay_out_plain
from turret_server.pipeline.documents.layout.text import PageText
from turret_server.pipeline.documents.layout.turret import lay_out_turret
from turret_server.pipeline.documents.page import Page

__all__ = ["LayoutOptions", "Mode", "PageText", "lay_out"]

DEFAULT = LayoutOptions()


def lay_out(page: Page, options: LayoutOptions = DEFAULT) -> PageText:
    """The page as text.

    Pure and deterministic. In mode "turret" the order of the page's words makes no difference.

    Args:
        page: whose words have finite coordinates.
        options: the mode, and limits of white space.
    """
    if options.mode == "plain":
        return lay_out_plain(page)
    if options.mode == "latin":
        return lay_out_latin(page)
    return lay_out_turret(page, options)
