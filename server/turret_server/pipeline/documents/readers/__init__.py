"""Readers: one file per OCR format, each from bytes to pages."""
