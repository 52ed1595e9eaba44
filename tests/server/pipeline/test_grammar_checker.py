"""The sandbox process: it survives what it is given, and comes back when it does not."""

import os
import signal
import time

import pytest

from turret_server.errors import EngineUnavailable, StartupError
from turret_server.pipeline.grammar_checker import GrammarChecker

HANGS = "start: T\nT: " + " & ".join(f"/(.*a.{{{i}}}b.*)/" for i in range(5, 40))


@pytest.fixture
def checker(tokenizers):
    tokenizer = tokenizers["byte_level"]
    made = GrammarChecker(tokenizer.path, tokenizer.vocab_size, tokenizer.eos_token_ids)
    yield made
    made.close()


def test_no_process_without_a_grammar(checker):
    assert checker._process is None


def test_a_hanging_grammar_costs_its_processor_time_and_no_more(checker):
    assert checker.check('start: "a"').refusal is None
    process = checker._process
    began = time.monotonic()
    assert checker.check(HANGS).refusal == "it takes more than 100 ms to compile"
    assert time.monotonic() - began < 10
    assert checker.check('start: "b"').refusal is None
    assert checker._process is process


def test_a_killed_sandbox_fails_one_request_and_is_replaced(checker):
    checker.check('start: "a"')
    first = checker._process
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="could not be checked"):
        checker.check('start: "b"')
    assert checker.check('start: "b"').refusal is None
    assert checker._process.pid != first.pid


def test_the_process_ends_with_the_checker(checker):
    checker.check('start: "a"')
    process = checker._process
    checker.close()
    assert process.returncode is not None
    checker.close()


def test_the_process_ends_when_its_server_does(checker):
    """A killed server closes nothing, but its end of the pipe is gone."""
    checker.check('start: "a"')
    checker._process.stdin.close()
    assert checker._process.wait(timeout=10) == 0


def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    broken = GrammarChecker(tmp_path / "tokenizer.json", 10, (0,))
    with pytest.raises(StartupError, match="structured output"):
        broken.check('start: "a"')
