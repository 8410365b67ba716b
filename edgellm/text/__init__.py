"""Text in and out of models: tokenizers, streaming decoder, chat templates."""

from edgellm.text.chat_template import ChatTemplate
from edgellm.text.choosing_template import chosen_template
from edgellm.text.stream import StreamDecoder
from edgellm.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "chosen_template", "load_tokenizer"]
