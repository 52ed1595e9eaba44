"""A process that tries grammars out: `python -m turret_server.pipeline.grammar_sandbox`.

llguidance has limits, but not on everything: intersecting a few regular expressions, which one
kilobyte of JSON schema can ask for, keeps it busy for minutes, and no thread can be stopped. So
each grammar is first compiled here, in a fork that the kernel ends when it has used its processor
time. What passes is known to compile; whatever else a grammar may do to the library, a deep
recursion or an abort included, it does it to the fork.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
from llguidance.gbnf_to_lark import any_to_lark

from turret_server.engine.grammar import GrammarCompiler
from turret_server.errors import TurretError
from turret_server.pipeline.frames import read_frame, write_frame
from turret_server.pipeline.grammar_wire import (
    Question,
    Setup,
    Verdict,
)

CPU_SECONDS = 0.1
WALL_SECONDS = 8.0  # for a fork that gets no processor: the machine is busy, or it deadlocked
_STEPS = 16  # tokens that are tried


def main() -> None:
    """Answer grammars on stdin with verdicts on stdout until stdin closes."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = read_frame(source)
    if first is None:
        return
    setup = msgspec.json.decode(first, type=Setup)
    try:
        compiler = GrammarCompiler(
            Path(setup.tokenizer_json), setup.vocab_size, setup.eos_token_ids
        )
    except TurretError as error:
        write_frame(sink, msgspec.json.encode(Verdict(str(error))))
        return
    os.nice(5)  # the engine comes first
    write_frame(sink, msgspec.json.encode(Verdict()))
    while (frame := read_frame(source)) is not None:
        question = msgspec.json.decode(frame, type=Question)
        verdict = _in_fork(compiler, question, setup.vocab_size)
        write_frame(sink, msgspec.json.encode(verdict))


def _in_fork(compiler: GrammarCompiler, question: Question, vocab_size: int) -> Verdict:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its default action ends the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a panic writes is of no use
            answer = msgspec.json.encode(_try(compiler, question, vocab_size))
            signal.setitimer(signal.ITIMER_PROF, 0)  # no half answers
            while answer:
                answer = answer[os.write(writer, answer) :]
        finally:
            os._exit(0)
    os.close(writer)
    answer, complete = b"", False
    try:
        while not complete and select.select([reader], [], [], WALL_SECONDS)[0]:
            part = os.read(reader, 65_536)
            answer, complete = answer + part, not part
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)  # a fork that has ended is still there to be waited for
        _, status = os.waitpid(pid, 0)
    if complete and answer:
        return msgspec.json.decode(answer, type=Verdict)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
        return Verdict(f"it takes more than {CPU_SECONDS * 1000:.0f} ms to compile")
    return Verdict("the grammar compiler failed on it")


def _try(compiler: GrammarCompiler, question: Question, vocab_size: int) -> Verdict:
    """Compile, then walk a little way into the grammar at random, always the same way."""
    grammar = question.grammar
    if question.gbnf:
        try:
            grammar = any_to_lark(grammar)
        except Exception as error:  # the converter raises plain ones, and IndexError at the end
            return Verdict(f"it is neither Lark nor GBNF: {error}"[:300])
    mask = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
    choose = random.Random(0)
    try:
        matcher = compiler.matcher(grammar)
        for _ in range(_STEPS):
            if matcher.finished:
                break
            matcher.fill_mask(mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            if not len(allowed):
                return Verdict("no text satisfies it")
            if not matcher.accept(int(choose.choice(allowed))):
                break
    except TurretError as error:
        return Verdict(error.why)
    return Verdict(grammar=grammar)


if __name__ == "__main__":
    main()
