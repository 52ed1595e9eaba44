"""Log-likelihoods by transformers and PEFT in float32, one text at a time.

    python lm_eval_reference.py PAIRS TRUTH MODEL [ADAPTER]

PAIRS is a JSON list of [context, continuation] and [text]; TRUTH gets a list of [sum of
log-probabilities, is greedy, number of tokens], split into tokens as lm-eval splits them.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    pairs, truth, folder, *adapter = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter[0])
    model.eval()

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    results = []
    for given in json.loads(Path(pairs).read_text()):
        if len(given) == 1:  # a whole text, after the token that begins one
            context, ids = [tokenizer.bos_token_id], encode(given[0])
        else:
            # lm-eval counts white space between the two as part of the continuation, which is
            # then what the tokens of the whole have beyond those of the context.
            context = encode(given[0].rstrip())
            ids = encode(given[0] + given[1])[len(context) :]
        with torch.inference_mode():
            logits = model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1]
        logprobs = logits.float().log_softmax(-1)
        tokens = torch.tensor(ids)
        total = logprobs.gather(1, tokens[:, None]).double().sum().item()
        results.append([total, bool((logprobs.argmax(-1) == tokens).all()), len(ids)])
    Path(truth).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
