"""/tokenize and /detokenize, in the words of llama.cpp and of vLLM, and vLLM's /tokenizer_info, which lm-eval reads."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from edgellm.engine import Model
from edgellm.engine.asking import prompt_of_chat
from edgellm.params import ChatParams
from edgellm.server.chatting import prepared
from edgellm.server.fields import check_messages
from edgellm.server.openai.tokens import piece_of, text_of
from edgellm.server.openai.types import Continuing, Message
from edgellm.server.problems import ApiProblem
from edgellm.server.sampling import Strict
from edgellm.server.server import Server
from edgellm.server.streams import JsonAnswer


class TokenizeRequest(Continuing):
    """/tokenize: of a text, or of a chat as the model's template writes it for an answer."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """/detokenize"""

    model: str | None = None
    tokens: list[int]


async def tokenize(server: Server, request: Request) -> Response:
    asked = await server.body(request, TokenizeRequest)
    given = [name for name in ("content", "prompt", "messages") if getattr(asked, name) is not None]
    if len(given) != 1:
        told = f"{' and '.join(given)} are given" if given else "nothing is given"
        raise ApiProblem(400, f"{told}; expected one of content, prompt, messages")

    def work(model: Model) -> dict[str, Any]:
        ids = _ids(model, asked)
        found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": model.n_ctx}
        if asked.with_pieces:
            found["tokens"] = [{"id": i, "piece": piece_of(model.tokenizer, i)} for i in ids]
        if asked.return_token_strs:
            found["token_strs"] = [text_of(model.tokenizer, i) for i in ids]
        return found

    return JsonAnswer(await server.ask(request, asked.model, work))


def _ids(model: Model, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        if model.chat_template is None:
            raise ApiProblem(400, "this model has no chat template; give prompt instead of messages", "messages")
        given = [message.plain() for message in asked.messages]
        wishes = ChatParams(continue_final_message=asked.continues(given))
        messages = prepared(given)
        check_messages(messages, model.chat_template)
        prompt = prompt_of_chat(model.chat_template, messages, {}, wishes)
        return model.tokenize(prompt, add_special=False, parse_special=True)
    # vLLM puts BOS before a prompt unless told otherwise; llama.cpp does not.
    text = asked.content if asked.content is not None else asked.prompt or ""
    wished = asked.add_special if asked.add_special is not None else asked.add_special_tokens
    add_special = asked.prompt is not None if wished is None else wished
    return model.tokenize(text, add_special=add_special, parse_special=asked.parse_special is not False)


async def detokenize(server: Server, request: Request) -> Response:
    asked = await server.body(request, DetokenizeRequest)
    text = await server.ask(request, asked.model, lambda model: model.detokenize(asked.tokens), {"token_ids": "tokens"})
    return JsonAnswer({"content": text, "prompt": text})


async def tokenizer_info(server: Server, request: Request) -> Response:
    """What programs need that tokenize by this server: the special tokens by their roles, and the chat template."""

    def work(model: Model) -> dict[str, Any]:
        roles: dict[str, str | None] = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"))
        template = None if model.chat_template is None else model.chat_template.source
        length = {"model_max_length": model.n_ctx}
        return {**roles, **model.tokenizer.special_tokens, "chat_template": template, **length}

    return JsonAnswer(await server.ask(request, request.query_params.get("model"), work))
