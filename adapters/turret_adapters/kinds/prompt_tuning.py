"""Soft prompts as PEFT saves them: m virtual tokens, given by embeddings, before the prompt.

Prompt tuning (Lester et al., 2021), p-tuning (Liu et al., 2021), whose encoder is already applied
in what is stored, and multitask prompt tuning (Wang et al., 2023), folded for one task:
`P * (columns[task] @ rows[task])`.
"""

from __future__ import annotations

from turret_adapters.components import SoftPrompt
from turret_adapters.files import AdapterFiles
from turret_adapters.peft.prompt_learning import VirtualTokens, guess_base
from turret_adapters.peft.tensors import is_peft
from turret_adapters.spec import Kind, ModelShape, Module, Program, Site

_TYPES = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
# How training began, and the encoder that the stored embeddings came out of.
_KNOWN = frozenset(
    {
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
        "encoder_reparameterization_type",
        "prompt_tuning_init",
        "prompt_tuning_init_state_dict_path",
        "prompt_tuning_init_task",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
_MULTITASK = frozenset({"num_ranks", "num_tasks", "task_id"})
_SITE = Site(-1, Module.EMBED)


def _detect(files: AdapterFiles) -> bool:
    return any(is_peft(files, name) for name in _TYPES)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    is_multitask = is_peft(files, "MULTITASK_PROMPT_TUNING")
    virtual = VirtualTokens(files, shape, _KNOWN | _MULTITASK if is_multitask else _KNOWN)
    width = shape.width(Module.EMBED)
    virtual.expect("token_dim", width)
    embeddings = virtual.rows(width).float()
    if is_multitask:
        config = virtual.config
        tasks, rank = config.integer("num_tasks", 1, 1), config.integer("num_ranks", 1, 1)
        columns = virtual.read("prefix_task_cols", (tasks, virtual.count, rank))
        rows = virtual.read("prefix_task_rows", (tasks, rank, width))
        task = _task(virtual, tasks)
        embeddings = embeddings * (columns[task].float() @ rows[task].float())
    return virtual.tensors.program(
        "prompt_tuning", [SoftPrompt(_SITE, embeddings)], num_virtual_tokens=virtual.count
    )


def _task(virtual: VirtualTokens, num_tasks: int) -> int:
    config = virtual.config
    if config.get("task_id") is None:
        if num_tasks == 1:
            return 0
        raise config.unsupported(
            f"it holds soft prompts of {num_tasks} tasks, and PEFT is told which one with every "
            "call",
            'Add "task_id": 0 (or another) to adapter_config.json; one folder for each task.',
        )
    task = config.integer("task_id", 0, 0)
    if task >= num_tasks:
        raise config.malformed(f"task_id is {task}, and num_tasks is {num_tasks}")
    return task


def _guess_shape(files: AdapterFiles) -> ModelShape:
    layers, width = guess_base(files)
    return ModelShape(layers, {Module.EMBED: (0, width)})


KIND = Kind("prompt_tuning", _detect, _compile, _guess_shape)
