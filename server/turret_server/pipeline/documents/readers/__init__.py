"""OCR results of every make as pages: one file per format, found by its content."""

from turret_server.pipeline.documents.readers.limits import ReadLimits
from turret_server.pipeline.documents.readers.registry import FORMATS, detect, read, read_value

__all__ = ["FORMATS", "ReadLimits", "detect", "read", "read_value"]
