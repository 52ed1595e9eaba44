"""Reading frames: words of one direction of reading, turned upright and rid of their tilt.

The first edge of a word's quad runs in the direction of reading. Its nearest right angle is the
word's direction; the direction most characters have is the page's, and words of another direction
(a stamp up the margin) become blocks of their own. What the median edge still deviates from the
right angle is the tilt of the scan, and is turned back as well.
"""

from __future__ import annotations

import numpy as np

from turret_server.pipeline.documents.layout.bidi import reads_right_to_left
from turret_server.pipeline.documents.layout.boxes import Boxes, Floats, Ints, display_width
from turret_server.pipeline.documents.layout.text import collapse
from turret_server.pipeline.documents.page import Page

# A word of three letters or more in a box so much taller than wide does not run across the page.
TALL = 2.0
# Coordinates beyond this lose their order, not the page.
FARTHEST = 1e12


def frames(page: Page, mirror: bool = True) -> list[Boxes]:
    """The page's words by direction of reading, the most frequent first.

    Words without text are left out. Within a frame words are in an order that does not depend on
    the page's: by top, left and text.

    Args:
        page: whose words have finite coordinates.
        mirror: a frame that reads from right to left is mirrored.
    """
    texts = [collapse(word.text) for word in page.words]
    index = np.array([i for i, text in enumerate(texts) if text], dtype=np.int64)
    if not len(index):
        return []
    quads = np.array([page.words[i].quad for i in index], dtype=np.float64)
    quads = np.clip(quads, -FARTHEST, FARTHEST).reshape(-1, 4, 2)
    length = np.array([len(texts[i]) for i in index])
    width = np.array([display_width(texts[i]) for i in index])
    _stand_up(quads, length, width, page.angle)
    edge = quads[:, 1] - quads[:, 0]
    quarter = np.round(np.arctan2(edge[:, 1], edge[:, 0]) / (np.pi / 2)).astype(np.int64) % 4
    votes = np.bincount(quarter, weights=length, minlength=4)
    order = sorted(np.flatnonzero(votes), key=lambda q: (-votes[q], q))
    return [
        _upright(texts, index[quarter == q], _turn(quads[quarter == q], int(q)), mirror)
        for q in order
    ]


def _stand_up(quads: Floats, length: Ints, width: Ints, angle: float) -> None:
    """Gives words in tall boxes the direction that their upright quads hide, in place.

    Wide characters, and those of a page turned clockwise, run downwards, as Chinese and Japanese
    do; others upwards, as the labels of axes and narrow columns do.
    """
    edge, side = quads[:, 1] - quads[:, 0], quads[:, 3] - quads[:, 0]
    along, across = np.hypot(*edge.T), np.hypot(*side.T)
    tall = (length >= 3) & (across > TALL * along)
    if 2 * length[tall].sum() > length.sum():
        # Most of the page: short words, whose boxes tell nothing, go with it.
        tall |= along <= TALL * across
    down = (width > length) | (45 <= angle % 360 < 135)
    quads[tall & down] = np.roll(quads[tall & down], -1, axis=1)
    quads[tall & ~down] = np.roll(quads[tall & ~down], 1, axis=1)


def _turn(quads: Floats, quarter: int) -> Floats:
    """[N, 4, 2] corners turned back by `quarter` right angles, clockwise ones on the page."""
    x, y = quads[..., 0], quads[..., 1]
    turned = [(x, y), (y, -x), (-x, -y), (-y, x)][quarter]
    return np.stack(turned, axis=-1)


def _upright(texts: list[str], index: Ints, quads: Floats, mirror: bool) -> Boxes:
    """Boxes of words whose quads run to the right, but for the page's tilt."""
    low, high = quads.min(axis=1), quads.max(axis=1)
    edge = (quads[:, 1] - quads[:, 0] + quads[:, 2] - quads[:, 3]) / 2
    tilt = _weighted_median(np.arctan2(edge[:, 1], edge[:, 0]), edge[:, 0])
    if tilt:
        side = (quads[:, 3] - quads[:, 0] + quads[:, 2] - quads[:, 1]) / 2
        x, y = quads.mean(axis=1).T
        cos, sin = np.cos(tilt), np.sin(tilt)
        half = np.stack([np.hypot(*edge.T), np.hypot(*side.T)], axis=1) / 2
        centre = np.stack([x * cos + y * sin, y * cos - x * sin], axis=1)
        low, high = centre - half, centre + half
    low, high, unit = low - low.min(axis=0), high - low.min(axis=0), 1.0
    height = high[:, 1] - low[:, 1]
    if (height > 0).any():
        unit = float(np.median(height[height > 0]))
    low, high = low / unit, high / unit
    word_texts = [texts[i] for i in index]
    mirrored = mirror and reads_right_to_left(word_texts)
    if mirrored:
        right = float(high[:, 0].max())
        low[:, 0], high[:, 0] = right - high[:, 0], right - low[:, 0]
    order = sorted(
        range(len(index)), key=lambda i: (low[i, 1], low[i, 0], word_texts[i], high[i, 0])
    )
    return Boxes(
        index=index[order].tolist(),
        text=[word_texts[i] for i in order],
        width=np.array([display_width(word_texts[i]) for i in order], dtype=np.int64),
        left=low[order, 0],
        top=low[order, 1],
        right=high[order, 0],
        bottom=high[order, 1],
        mirrored=mirrored,
    )


def _weighted_median(values: Floats, weights: Floats) -> float:
    """The value below and above which half the weight lies."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(np.maximum(weights, 0)[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
