"""A process that reads OCR results and lays pages out.

`python -m turret_server.pipeline.documents.worker`: in a process, because no thread can be stopped,
and because parsing a large document holds the interpreter that serves everyone.
"""

from __future__ import annotations

import os
import sys
import traceback

from turret_server.errors import PayloadTooLarge, TurretError, Unprocessable
from turret_server.pipeline.documents.layout import PageText, lay_out
from turret_server.pipeline.documents.readers import read
from turret_server.pipeline.documents.worker_wire import (
    LayOut,
    Pages,
    Problem,
    Read,
    Texts,
    decode_job,
    encode,
)
from turret_server.pipeline.frames import read_frame, write_frame

MAX_MEMORY_BYTES = 2 << 30  # 16 MiB of JSON brackets become 0.6 GiB of lists


def main() -> None:
    """Do the jobs that come on stdin until it closes."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _limit_memory()
    os.nice(5)  # the engine comes first
    while (frame := read_frame(source)) is not None:
        write_frame(sink, encode(_done(decode_job(frame))))


def _done(job: Read | LayOut) -> Pages | Texts | Problem:
    try:
        if isinstance(job, Read):
            return Pages(read(job.data, job.format, job.limits))
        return Texts(_laid_out(job))
    except TurretError as error:
        return Problem.of(error)
    except MemoryError:
        why = f"it needs more than {MAX_MEMORY_BYTES >> 30} GiB of memory"
    except Exception as error:  # a reader's fault; it must not take the next document along
        traceback.print_exc()
        why = f"its form was not foreseen ({type(error).__name__})"
    return Problem.of(Unprocessable("the document cannot be read", why, "Send it in parts."))


def _laid_out(job: LayOut) -> list[PageText]:
    texts, left = [], job.max_chars
    for page in job.pages:
        text = lay_out(page, job.options)
        if (left := left - len(text.text)) < 0:
            raise PayloadTooLarge(
                "the documents have too much text",
                f"it comes to more than {job.max_chars:,} characters on page {page.number}",
                "Send fewer pages at once.",
            )
        texts.append(text)
    return texts


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    main()
