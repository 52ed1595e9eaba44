"""The child that decodes and reads: `python -m turret_server.pipeline.documents.ocr.worker`.

It holds one document at a time and answers page by page. Libraries that decode what strangers
send are imported here alone.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback

import msgspec

from turret_server.errors import TurretError, Unprocessable
from turret_server.pipeline.documents.ocr.reader import Reader
from turret_server.pipeline.documents.ocr.settings import PictureSettings
from turret_server.pipeline.documents.ocr.wire import (
    Done,
    Open,
    Opened,
    Ready,
    Refused,
    Reply,
    Request,
)
from turret_server.pipeline.frames import read_frame, write_frame

_GRACE_S = 5.0  # after the pool's own time-out; for when the pool is gone


def main() -> None:
    """Answer requests on stdin until it closes."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    first = read_frame(source)
    if first is None:
        return
    settings = msgspec.json.decode(first, type=PictureSettings)
    _confine(settings)
    reader = Reader(settings)
    write_frame(sink, msgspec.json.encode(Ready()))
    decode = msgspec.json.Decoder(Request).decode
    while (frame := read_frame(source)) is not None:
        request = decode(frame)
        data = read_frame(source) if isinstance(request, Open) else b""
        if data is None:
            return
        # The default action of the signal ends the process, also where it hangs in a library.
        signal.setitimer(signal.ITIMER_REAL, settings.page_timeout_s + _GRACE_S)
        reply = _answer(reader, request, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(sink, msgspec.json.encode(reply))
        if isinstance(reply, Refused) and reply.spent:
            return


def _confine(settings: PictureSettings) -> None:
    os.nice(settings.niceness)  # the engine comes first
    # What libraries print is for nobody, and must not get between the messages.
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.close(silence)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing here writes files
    if sys.platform == "linux":  # elsewhere the limit is refused or ignored
        limit = settings.memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _answer(reader: Reader, request: Request, data: bytes) -> Reply:
    try:
        if isinstance(request, Open):
            return Opened(reader.open(data, request.kind, request.ocr))
        return Done(reader.read(request.number))
    except TurretError as error:
        return Refused.of(error)
    except MemoryError:
        return Refused.of(
            Unprocessable(
                "the document could not be read",
                f"it needs more than the {reader.settings.memory_mib} MiB of memory "
                "that the server gives to one page",
                "Send it smaller.",
            ),
            spent=True,
        )
    except Exception as error:  # whatever a decoder raises on a file that it did not expect
        return Refused.of(
            Unprocessable(
                "the document could not be read",
                f"reading it failed ({type(error).__name__})",
                "Save it anew with another program.",
            ),
            traceback.format_exc(),
        )


if __name__ == "__main__":
    main()
