from peft import OFTConfig
from tests.kinds.case import peft_case

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def case(name, targets=LINEARS, bases=("llama",), may_lack=(), **fields):
    return peft_case(
        f"oft{name}",
        "oft",
        lambda: OFTConfig(target_modules=targets, **{"oft_block_size": 8, **fields}),
        bases=bases,
        may_lack=may_lack,
    )


CASES = [
    case("", bases=("llama", "tied")),
    case("-exact", use_cayley_neumann=False),
    case("-terms", ["q_proj", "down_proj"], num_cayley_neumann_terms=3),
    case("-two-terms", ["v_proj", "up_proj"], num_cayley_neumann_terms=2),
    case("-shared", ["k_proj", "o_proj"], block_share=True),
    case("-number-of-blocks", ["q_proj", "v_proj"], r=5, oft_block_size=0),
    case("-bias", ["k_proj", "v_proj"], bases=("qwen",), may_lack=("bias",), bias="oft_only"),
]
