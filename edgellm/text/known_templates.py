r"""Chat templates of well-known forms, for files that have none and for people who ask for one by name.

Each is what its models were trained on, and no more: no tools, no thoughts, no default texts of the system. A form is
recognised by the special tokens that it is made of; one that is spelled with ordinary text cannot be, and is for those
who name it.
"""

# The bars of DeepSeek's tokens are wide ones.
# ruff: noqa: RUF001

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.text.tokenizer import Tokenizer

# A file that has one of these names more ends than that of a text.
_TURN_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id", "edgellm.tokenizer.stop_ids")
_CHATS = re.compile(r"(?<![a-z])(instruct|chat|it|assistant)(?![a-z])", re.IGNORECASE)

_ROLE, _CONTENT = "message['role']", "message['content'] | trim"


@dataclass(frozen=True)
class KnownTemplate:
    """One form.

    source:  Jinja text.
    tokens:  the special tokens that tell it; none where it is ordinary text.
    model:   the kind of vocabulary (`tokenizer.ggml.model`) that it goes with, where that matters.
    base:    the token that ends the texts of base models with the same vocabulary.
    """

    source: str
    tokens: tuple[str, ...] = ()
    model: str | None = None
    base: str | None = None


def _turns(turn: str, answer: str, begin: str = "{{ bos_token }}") -> str:
    """A template that writes one message like another, then what an answer begins with."""
    turns = f"{begin}{{% for message in messages %}}{turn}{{% endfor %}}"
    return f"{turns}{{% if add_generation_prompt %}}{answer}{{% endif %}}"


def _by_role(system: str, user: str, assistant: str) -> str:
    """What is written of a message of each role; another role is refused."""
    return (
        f"{{% if {_ROLE} == 'system' %}}{system}{{% elif {_ROLE} == 'user' %}}{user}"
        f"{{% elif {_ROLE} == 'assistant' %}}{assistant}{{% else %}}"
        "{{ raise_exception('this chat template has no place for the role ' + message['role']) }}{% endif %}"
    )


def _with_system_in_user(user: str, assistant: str, system: str, begin: str = "{{ bos_token }}") -> str:
    """For models without turns of the system: its text stands in the first turn of the user, where `user` has FIRST."""
    told = "{% set told = messages[0]['content'] | trim %}{% set turns = messages[1:] %}"
    return (
        f"{begin}{{% if messages and messages[0]['role'] == 'system' %}}{told}{{% else %}}{{% set told = '' %}}"
        "{% set turns = messages %}{% endif %}{% for message in turns %}"
        + _by_role(
            "{{ raise_exception('a message of the system must be the first') }}",
            user.replace("FIRST", f"{{% if loop.first and told %}}{system}{{% endif %}}"),
            assistant,
        )
        + "{% endfor %}"
    )


_CHATML = _turns(
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}",
    "{{ '<|im_start|>assistant\\n' }}",
    begin="",
)
_PHI4 = _turns(
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}",
    "{{ '<|im_start|>assistant<|im_sep|>' }}",
    begin="",
)
_PHI3 = _turns(
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}", "{{ '<|assistant|>\\n' }}", begin=""
)
_ZEPHYR = _turns(
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}",
    "{{ '<|assistant|>\\n' }}",
    begin="",
)
_LLAMA3 = _turns(
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{{ " + _CONTENT + " }}{{ '<|eot_id|>' }}",
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}",
)
_LLAMA4 = _turns(
    "{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}{{ " + _CONTENT + " }}{{ '<|eot|>' }}",
    "{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}",
)
_GRANITE = _turns(
    "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}",
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}",
    begin="",
)
_GLM4 = _turns(
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] }}", "{{ '<|assistant|>' }}", begin="[gMASK]<sop>"
)
_COMMAND_R = _turns(
    _by_role(
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ " + _CONTENT + " }}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{ " + _CONTENT + " }}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{{ " + _CONTENT + " }}<|END_OF_TURN_TOKEN|>",
    ),
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
)
_DEEPSEEK = _turns(
    _by_role(
        "{{ message['content'] }}",
        "<｜User｜>{{ message['content'] }}",
        "<｜Assistant｜>{{ message['content'] }}<｜end▁of▁sentence｜>",
    ),
    "<｜Assistant｜>",
)
_EXAONE = _turns(
    _by_role(
        "[|system|]{{ " + _CONTENT + " }}[|endofturn|]{{ '\\n' }}",
        "[|user|]{{ " + _CONTENT + " }}{{ '\\n' }}",
        "[|assistant|]{{ " + _CONTENT + " }}[|endofturn|]{{ '\\n' }}",
    ),
    "[|assistant|]",
    begin="",
)
_VICUNA = _turns(
    _by_role(
        "{{ message['content'] }}{{ '\\n\\n' }}",
        "USER: {{ message['content'] }}{{ '\\n' }}",
        "ASSISTANT: {{ message['content'] }}{{ eos_token }}{{ '\\n' }}",
    ),
    "ASSISTANT:",
)
_ALPACA = _turns(
    _by_role(
        "{{ message['content'] }}{{ '\\n\\n' }}",
        "### Instruction:{{ '\\n' + message['content'] + '\\n\\n' }}",
        "### Response:{{ '\\n' + message['content'] + eos_token + '\\n\\n' }}",
    ),
    "{{ '### Response:\\n' }}",
)
_GEMMA = (
    _with_system_in_user(
        "{{ '<start_of_turn>user\\n' }}FIRST{{ " + _CONTENT + " }}{{ '<end_of_turn>\\n' }}",
        "{{ '<start_of_turn>model\\n' }}{{ " + _CONTENT + " }}{{ '<end_of_turn>\\n' }}",
        "{{ told + '\\n\\n' }}",
    )
    + "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_LLAMA2 = _with_system_in_user(
    "{{ bos_token }}[INST] FIRST{{ " + _CONTENT + " }} [/INST]",
    " {{ " + _CONTENT + " }} {{ eos_token }}",
    "{{ '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' }}",
    begin="",
)


def _mistral(before: str, behind: str, answer: str) -> str:
    return _with_system_in_user(
        f"[INST]{before}FIRST{{{{ message['content'] }}}}{behind}[/INST]",
        f"{answer}{{{{ message['content'] }}}}{{{{ eos_token }}}}",
        "{{ told + '\\n\\n' }}",
    )


def _mistral_v7(space: str) -> str:
    return _turns(
        _by_role(
            f"[SYSTEM_PROMPT]{space}{{{{ message['content'] }}}}[/SYSTEM_PROMPT]",
            f"[INST]{space}{{{{ message['content'] }}}}[/INST]",
            f"{space}{{{{ message['content'] }}}}{{{{ eos_token }}}}",
        ),
        "",
    )


_INST = ("[INST]", "[/INST]")
_INST_V7 = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", *_INST)

# In the order in which they are looked for: what has more tokens of its own comes before what has fewer.
KNOWN_TEMPLATES = {
    "phi4": KnownTemplate(_PHI4, ("<|im_start|>", "<|im_sep|>", "<|im_end|>")),
    "chatml": KnownTemplate(_CHATML, ("<|im_start|>", "<|im_end|>"), base="<|endoftext|>"),
    "llama3": KnownTemplate(
        _LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), base="<|end_of_text|>"
    ),
    "llama4": KnownTemplate(_LLAMA4, ("<|header_start|>", "<|header_end|>", "<|eot|>"), base="<|end_of_text|>"),
    "gemma": KnownTemplate(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), base="<eos>"),
    "mistral-v7-tekken": KnownTemplate(_mistral_v7(""), _INST_V7, "gpt2"),
    "mistral-v7": KnownTemplate(_mistral_v7(" "), _INST_V7),
    "mistral-v3-tekken": KnownTemplate(_mistral("", "", ""), _INST, "gpt2"),
    "mistral-v3": KnownTemplate(_mistral(" ", "", " "), _INST),
    "command-r": KnownTemplate(
        _COMMAND_R, ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
    ),
    "deepseek": KnownTemplate(_DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")),
    "granite": KnownTemplate(_GRANITE, ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>")),
    "glm4": KnownTemplate(_GLM4, ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>")),
    "exaone": KnownTemplate(_EXAONE, ("[|user|]", "[|assistant|]", "[|endofturn|]")),
    "phi3": KnownTemplate(_PHI3, ("<|user|>", "<|assistant|>", "<|end|>")),
    "zephyr": KnownTemplate(_ZEPHYR, ("<|user|>", "<|assistant|>")),
    "mistral-v1": KnownTemplate(_mistral(" ", " ", " ")),
    "llama2": KnownTemplate(_LLAMA2),
    "vicuna": KnownTemplate(_VICUNA),
    "alpaca": KnownTemplate(_ALPACA),
}
ALIASES = {"mistral": "mistral-v3", "deepseek3": "deepseek", "chatglm4": "glm4", "exaone3": "exaone"}


def recognised(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> str | None:
    """The name of the template whose special tokens a vocabulary has; None where it has those of none.

    Base models are trained with the vocabularies of their chat models, so a file whose texts end as those of a base
    model do, which names no end of a turn and is not called a chat model, is one.
    """
    for name, known in KNOWN_TEMPLATES.items():
        fits = known.model is None or known.model == tokenizer.kind
        if known.tokens and fits and all(map(tokenizer.has_special, known.tokens)):
            return None if _is_base(known, metadata, tokenizer) else name
    return None


def _is_base(known: KnownTemplate, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    if known.base is None or tokenizer.special_tokens.get("eos_token") != known.base:
        return False
    names = " ".join(str(metadata.get(f"general.{key}", "")) for key in ("name", "finetune"))
    return not any(key in metadata for key in _TURN_ENDS) and not _CHATS.search(names)
