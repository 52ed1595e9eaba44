"""Pages from pictures and PDFs, read in child processes."""

from turret_server.pipeline.documents.ocr.pool import PicturePool
from turret_server.pipeline.documents.ocr.settings import PictureSettings

__all__ = ["PicturePool", "PictureSettings"]
