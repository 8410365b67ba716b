"""Templates in the manner of model families, each with calls in another form."""

from __future__ import annotations

_TOLD = "{% if tools %}Tools: {% for t in tools %}{{ t | tojson }}{% endfor %}\n{% endif %}"
_CHATML = (
    _TOLD + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% set c = c.function %}CALL{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MISTRAL_3 = (
    _TOLD + "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}{% for c in m.tool_calls or [] %}CALL{% endfor %}</s>{% endif %}{% endfor %}"
)

TEMPLATES: dict[str, str] = {
    # JSON between tags, as Hermes and Qwen have it.
    "hermes": _CHATML.replace(
        "CALL", '<tool_call>\n{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>'
    ),
    # JSON alone, one call at most.
    "llama 3": _TOLD + "{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    # A list of JSON, with ids of nine characters.
    "mistral": _TOLD + "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    '{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]</s>{% else %}{{ m.content }}</s>{% endif %}{% endfor %}",
    # Names and arguments between tokens, without and with ids, as Mistral has it since.
    "mistral 3": _MISTRAL_3.replace(
        "CALL", "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
    "mistral 3 with ids": _MISTRAL_3.replace(
        "CALL", "[TOOL_CALLS]{{ c.function.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.function.arguments | tojson }}"
    ),
    # Name and arguments between tokens, as DeepSeek has it, a thought begun in the prompt.
    "deepseek": _TOLD + "{% for m in messages %}{% if m.role == 'user' %}<\uff5cUser\uff5c>{{ m.content }}{% else %}"
    "<\uff5cAssistant\uff5c>{{ m.content }}{% if m.tool_calls %}<\uff5ctool▁calls▁begin\uff5c>"
    "{% for c in m.tool_calls %}<\uff5ctool▁call▁begin\uff5c>function<\uff5ctool▁sep\uff5c>{{ c.function.name }}\n"
    "```json\n{{ c.function.arguments | tojson }}\n```<\uff5ctool▁call▁end\uff5c>"
    "{% endfor %}<\uff5ctool▁calls▁end\uff5c>{% endif %}<\uff5cend▁of▁sentence\uff5c>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<\uff5cAssistant\uff5c><think>\n{% endif %}",
    # Arguments as JSON in a JSON string.
    "quoted": _CHATML.replace(
        "CALL", '<call>{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson | tojson }}}</call>'
    ),
    # The arguments first.
    "arguments first": _CHATML.replace(
        "CALL", '<call>{"args": {{ c.arguments | tojson }}, "function": "{{ c.name }}"}</call>\n'
    ),
    # A tag for each argument.
    "qwen coder": _CHATML.replace(
        "CALL", "\n<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments | items %}<parameter={{ k }}>\n"
        "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>",
    ),
    "glm": _CHATML.replace(
        "CALL", "\n<tool_call>{{ c.name }}{% for k, v in c.arguments | items %}\n<arg_key>{{ k }}</arg_key>\n"
        "<arg_value>{{ v if v is string else v | tojson }}</arg_value>{% endfor %}\n</tool_call>",
    ),
    "invoke": _CHATML.replace(
        "CALL", '<invoke name="{{ c.name }}">{% for k, v in c.arguments | items %}<parameter name="{{ k }}">'
        "{{ v if v is string else v | tojson }}</parameter>{% endfor %}</invoke>",
    ),
    # As Python writes them.
    "llama 4": _TOLD + "{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{% if m.tool_calls %}["
    "{% for c in m.tool_calls %}{{ c.function.name }}({% for k, v in c.function.arguments | items %}{{ k }}="
    "{{ '\"' + v + '\"' if v is string else v | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
    "{{ ', ' if not loop.last }}{% endfor %}]{% else %}{{ m.content }}{% endif %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    # Texts between quotation marks of their own.
    "gemma 4": _TOLD + "{% for m in messages %}<|turn>{{ m.role }}\n{% for c in m.tool_calls or [] %}<|tool_call>call:"
    "{{ c.function.name }}{{ '{' }}{% for k, v in c.function.arguments | items %}{{ k }}:"
    "{{ '<|\"|>' + v + '<|\"|>' if v is string else v | tojson }}{{ ',' if not loop.last }}{% endfor %}"
    "{{ '}' }}<tool_call|>{% endfor %}{{ m.content }}<turn|>\n{% endfor %}",
}  # fmt: skip
