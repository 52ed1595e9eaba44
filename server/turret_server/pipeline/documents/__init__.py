"""Documents: from scans, PDFs and OCR results to prompts that keep a page's layout.

readers/  one file per OCR format -> pages      ocr, pdf, images  pictures -> pages
layout/   a page -> text                        tasks/            text and question -> a prompt
"""
