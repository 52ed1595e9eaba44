from dataclasses import replace

from peft import TrainableTokensConfig
from tests.kinds.case import peft_case

from turret_adapters.spec import Module

# Not ascending; all of them occur in the lab's prompts.
IDS = [42, 5, 99, 7, 30, 11]


def fewer_tokens(shape):
    return replace(shape, dims={**shape.dims, Module.EMBED: (80, 64), Module.HEAD: (64, 80)})


def case(name, targets, bases, **fields):
    return peft_case(
        name,
        "trainable_tokens",
        lambda: TrainableTokensConfig(token_indices=IDS, target_modules=targets),
        bases=bases,
        std=0.1,
        misfit=fewer_tokens,
        **fields,
    )


CASES = [
    case("trainable_tokens", None, ("llama",)),
    # The tied head's copy adds nothing to the embedding's rows.
    case("trainable_tokens-tied", None, ("tied", "gemma"), may_lack=("lm_head",)),
    case("trainable_tokens-both", ["embed_tokens", "lm_head"], ("llama",)),
    case("trainable_tokens-head", ["lm_head"], ("llama", "tied")),
]
