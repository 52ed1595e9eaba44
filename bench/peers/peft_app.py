"""A minimal completions server over transformers and PEFT, with static batches.

Whatever waits when the model is free becomes one batch: prompts padded to the left, one
`generate` call with PEFT's `adapter_names` when adapters are loaded, tokens streamed as they
come; the next batch starts when the longest answer of this one ends. Runs in the environment of
its own that `server_peft.py` makes, and imports nothing of Turret.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from aiohttp import web
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer

BASE = "base"


@dataclass
class Job:
    """One request: `tokens` carries its token ids, None ends it, an exception fails it."""

    prompt: str
    model: str
    max_tokens: int
    tokens: asyncio.Queue[int | Exception | None] = field(default_factory=asyncio.Queue)


class BatchStreamer(BaseStreamer):
    """Hands each step's tokens to their jobs, from the thread that generates."""

    def __init__(self, jobs: list[Job], loop: asyncio.AbstractEventLoop):
        self._jobs, self._loop = jobs, loop
        self._step = -1  # the first call brings the prompts

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts once, then one token per job and step; [num_jobs] int64."""
        if self._step >= 0:
            self._loop.call_soon_threadsafe(self._deliver, value.flatten().tolist(), self._step)
        self._step += 1

    def end(self) -> None:
        """Do nothing: each job ends at its own length."""

    def _deliver(self, token_ids: list[int], step: int) -> None:
        for job, token_id in zip(self._jobs, token_ids, strict=True):
            if step < job.max_tokens:
                job.tokens.put_nowait(token_id)
            if step == job.max_tokens - 1:
                job.tokens.put_nowait(None)


class Batcher:
    """The model, and the queue before it."""

    def __init__(self, model_path: str, adapters: dict[str, str], max_batch: int):
        self.tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.bfloat16)
        if adapters:
            from peft import PeftModel

            names = iter(adapters.items())
            first, path = next(names)
            model = PeftModel.from_pretrained(model, path, adapter_name=first)
            for name, path in names:
                model.load_adapter(path, adapter_name=name)
        self._model = model.eval()
        self.names = [BASE, *adapters]
        self._max_batch = max_batch
        self.queue: asyncio.Queue[Job] = asyncio.Queue()

    async def run(self) -> None:
        """Serve batches for ever."""
        while True:
            jobs = [await self.queue.get()]
            await asyncio.sleep(0.002)  # let requests that arrive together meet
            while len(jobs) < self._max_batch and not self.queue.empty():
                jobs.append(self.queue.get_nowait())
            try:
                await asyncio.to_thread(self._generate, jobs, asyncio.get_running_loop())
            except Exception as error:  # a batch that fails must not stop the server
                for job in jobs:
                    job.tokens.put_nowait(error)

    @torch.inference_mode()
    def _generate(self, jobs: list[Job], loop: asyncio.AbstractEventLoop) -> None:
        inputs = self.tokenizer([job.prompt for job in jobs], return_tensors="pt", padding=True)
        length = max(job.max_tokens for job in jobs)
        options: dict[str, Any] = {}
        if len(self.names) > 1:
            names = [job.model if job.model != BASE else "__base__" for job in jobs]
            options["adapter_names"] = names
        self._model.generate(
            **inputs,
            **options,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=self.tokenizer.pad_token_id,
            streamer=BatchStreamer(jobs, loop),
        )


async def complete(request: web.Request) -> web.StreamResponse:
    """Answer `/v1/completions`, streamed."""
    batcher: Batcher = request.app[BATCHER]
    body = await request.json()
    if body["model"] not in batcher.names:
        return web.json_response({"error": {"message": "unknown model"}}, status=404)
    job = Job(body["prompt"], body["model"], body["max_tokens"])
    await batcher.queue.put(job)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    num_tokens = 0
    while (token := await job.tokens.get()) is not None:
        if isinstance(token, Exception):
            await _send(response, {"error": {"message": str(token)}})
            return response
        num_tokens += 1
        text = batcher.tokenizer.decode([token])
        finish = "length" if num_tokens == job.max_tokens else None
        choice = {"index": 0, "text": text, "finish_reason": finish}
        await _send(response, {"object": "text_completion", "choices": [choice]})
    num_prompt = len(batcher.tokenizer(job.prompt).input_ids)
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_tokens}
    await _send(response, {"choices": [], "usage": usage})
    await response.write(b"data: [DONE]\n\n")
    return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


async def health(_: web.Request) -> web.Response:
    """Answer once the model is loaded."""
    return web.Response(text="ok")


BATCHER: web.AppKey[Batcher] = web.AppKey("batcher", Batcher)


async def _start(app: web.Application) -> None:
    app[TASK] = asyncio.create_task(app[BATCHER].run())


TASK: web.AppKey[asyncio.Task[None]] = web.AppKey("task", asyncio.Task)


def main() -> None:
    """Load the model and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-batch", type=int, default=16)
    args = parser.parse_args()
    adapters = dict(text.split("=", 1) for text in args.adapter)
    app = web.Application()
    app[BATCHER] = Batcher(args.model, adapters, args.max_batch)
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/health", health)
    app.on_startup.append(_start)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None)


if __name__ == "__main__":
    main()
