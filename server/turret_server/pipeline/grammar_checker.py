"""The API's side of the grammar sandbox: ask it, restart it, remember its verdicts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from turret_server.errors import EngineUnavailable, StartupError
from turret_server.pipeline.frames import read_frame, write_frame
from turret_server.pipeline.grammar_wire import (
    Question,
    Setup,
    Verdict,
)

_REMEMBERED = 256
_PATIENCE_S = 30.0  # the sandbox answers well before, or it is broken


class GrammarChecker:
    """Tells whether a grammar compiles in time. Thread-safe; starts its process on first use.

    Args:
        tokenizer_json: the model's tokenizer.json.
        vocab_size: of the tokenizer.
        eos_token_ids: ids that end an answer.
    """

    def __init__(self, tokenizer_json: Path, vocab_size: int, eos_token_ids: tuple[int, ...]):
        self._setup = Setup(str(tokenizer_json), vocab_size, list(eos_token_ids))
        self._process: subprocess.Popen[bytes] | None = None
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, grammar: str, *, gbnf: bool = False) -> Verdict:
        """Return whether a grammar can be used, and the form of it that the engine takes.

        Blocks for the compilation, so call it from a thread: some 10 ms for most grammars, 200 ms
        for one that is stopped, and about a second more for the first of all.

        Raises:
            EngineUnavailable: the sandbox process died; the next call starts another.
            StartupError: the sandbox cannot read the tokenizer.
        """
        data = msgspec.json.encode(Question(grammar, gbnf))
        key = hashlib.sha256(data).digest()
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return self._verdicts[key]
            verdict = self._ask(data)
            self._verdicts[key] = verdict
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
            return verdict

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _ask(self, data: bytes) -> Verdict:
        try:
            verdict = self._exchange(self._process or self._start(), data)
        except OSError as error:
            self._stop()
            raise EngineUnavailable(
                "the grammar could not be checked",
                "the process that compiles grammars ended or does not answer",
                "Send the request again.",
            ) from error
        return verdict

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the working directory may hold anything, and must not be imported from.
        # Own session: Ctrl-C is for the server, which closes the pipe when it ends.
        # One thread: a process that forks should have no others.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "turret_server.pipeline.grammar_sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        verdict = self._exchange(self._process, msgspec.json.encode(self._setup))
        if verdict.refusal is not None:
            self._stop()
            raise StartupError("structured output is not possible with this model", verdict.refusal)
        return self._process

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], data: bytes) -> Verdict:
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin, data)
        if not select.select([process.stdout], [], [], _PATIENCE_S)[0]:
            raise TimeoutError
        answer = read_frame(process.stdout)
        if answer is None:
            raise BrokenPipeError
        return msgspec.json.decode(answer, type=Verdict)

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # unsent bytes have no reader any more
                        pipe.close()
