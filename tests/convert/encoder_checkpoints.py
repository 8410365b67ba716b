"""Tiny encoders with random weights, in folders as transformers and Sentence Transformers save them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    NomicBertConfig,
    NomicBertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

from tests.arch import tiny

N_VOCAB = 400
TEXTS = [
    "def attention(q, k, v):", "", "A text of some words, and then some more of them: numbers 1 to 99.",
    "tokens = [model for model in models if model.is_small]\n" * 9, "x",
]  # fmt: skip

_BERT: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
_DECODER = _BERT | {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 0, "eos_token_id": 1}

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertModel, BertConfig, _BERT),
    "bert, tanh gelu": (BertModel, BertConfig, _BERT | {"hidden_act": "gelu_new"}),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig, _BERT | {"pad_token_id": 3, "type_vocab_size": 1}),
    "nomic": (NomicBertModel, NomicBertConfig, _BERT),
    "modern": (ModernBertModel, ModernBertConfig, _BERT | {"local_attention": 24, "num_hidden_layers": 5}),
    "modern, biases": (ModernBertModel, ModernBertConfig, _BERT | {
        "local_attention": 12, "attention_bias": True, "mlp_bias": True, "hidden_activation": "silu",
        "layer_types": ["sliding_attention", "full_attention", "full_attention"]}),
    "gemma": (Gemma3TextModel, Gemma3TextConfig, _DECODER | {
        "use_bidirectional_attention": True, "sliding_window": 40, "num_hidden_layers": 7,
        "query_pre_attn_scalar": 16}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _DECODER | {"tie_word_embeddings": True}),
}  # fmt: skip
RANKERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertForSequenceClassification, BertConfig, _BERT | {"num_labels": 1}),
    "xlm-roberta": (XLMRobertaForSequenceClassification, XLMRobertaConfig, _BERT | {
        "pad_token_id": 3, "type_vocab_size": 1, "num_labels": 1}),
    "modern": (ModernBertForSequenceClassification, ModernBertConfig, _BERT | {"local_attention": 24, "num_labels": 1}),
    "modern, mean": (ModernBertForSequenceClassification, ModernBertConfig, _BERT | {
        "local_attention": 24, "num_labels": 1, "classifier_pooling": "mean", "classifier_bias": True}),
}  # fmt: skip
SPECIAL_IDS = {"modern": {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}}
PAIRED = ("bert", "nomic", "jina")  # their tokenizer is WordPiece


def model_of(kinds: dict[str, tuple[Any, Any, dict[str, Any]]], name: str) -> Any:
    """A model with random weights; biases and norms too, which otherwise start as zeros and ones."""
    model_class, config_class, changes = kinds[name]
    torch.manual_seed(3)
    model = model_class(config_class(**(changes | SPECIAL_IDS.get(name.split(",")[0], {})))).eval()
    return randomized(model)


def randomized(model: Any) -> Any:
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.randn_like(x) / math.sqrt(x.shape[1]) if x.ndim == 2 else x + torch.randn_like(x) * 0.1)
    return model


def save(kinds: dict[str, tuple[Any, Any, dict[str, Any]]], name: str, folder: Path, pooling: str | None = None) -> Any:
    """A model and its tokenizer in a folder, of Sentence Transformers where a pooling is given; returns both."""
    model, tokenizer = model_of(kinds, name), tokenizer_of(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        as_sentence_transformers(folder, pooling)
    return model, tokenizer


def as_sentence_transformers(folder: Path, pooling: str, prompts: dict[str, str] | None = None) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ])  # fmt: skip
    key = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}[pooling]
    modes = {f"pooling_mode_{mode}": mode == key for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64} | modes)
    if prompts is not None:
        write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})


def add_dense(folder: Path, sizes: list[int], activation: str) -> list[torch.nn.Linear]:
    """Dense modules behind the pooling of a folder; the first of 64 inputs."""
    modules = json.loads((folder / "modules.json").read_text())
    layers, width = [], 64
    for i, size in enumerate(sizes):
        torch.manual_seed(i)
        layer, place = torch.nn.Linear(width, size, bias=i == 0), folder / f"{i + 2}_Dense"
        place.mkdir()
        weights = {f"linear.{name}": x.detach().clone() for name, x in layer.named_parameters()}
        save_file(weights, place / "model.safetensors")
        kind = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
        write(place / "config.json", {"in_features": width, "out_features": size, "activation_function": kind})
        modules.insert(i + 2, {"path": place.name, "type": "sentence_transformers.models.Dense"})
        layers.append(layer)
        width = size
    write(folder / "modules.json", modules)
    return layers


def states(model: Any, tokenizer: Any, text: str) -> np.ndarray:
    """float32 [n_tokens, 64] by transformers."""
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        return getattr(model, "model", model)(input_ids=ids).last_hidden_state[0].numpy()


def scores(model: Any, tokenizer: Any, query: str, texts: list[str]) -> np.ndarray:
    """float32 [n_texts] by transformers."""
    with torch.no_grad():
        pairs = [tokenizer(query, text, return_tensors="pt") for text in texts]
        return np.array([model(**pair).logits[0, 0].item() for pair in pairs], np.float32)


def pooled(rows: np.ndarray, pooling: str) -> np.ndarray:
    """The vector of a text, of length 1."""
    x = {"mean": rows.mean(0), "cls": rows[0], "last": rows[-1]}[pooling]
    return x / np.linalg.norm(x)


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    if name.split(",")[0] in PAIRED:
        return wordpiece()
    if name.split(",")[0] in ("gemma", "qwen3"):
        return byte_level(["<s>", "</s>"], "$A </s>", None, {})
    if name == "xlm-roberta":
        roles = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
        return byte_level(["<s>", "</s>", "<unk>", "<pad>"], "<s> $A </s>", "<s> $A </s> </s> $B </s>", roles)
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    return byte_level(specials, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", roles)


def wordpiece() -> PreTrainedTokenizerFast:
    """As BERT's, uncased."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(raw, trainers.WordPieceTrainer(vocab_size=N_VOCAB, special_tokens=specials, show_progress=False))
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def byte_level(specials: list[str], single: str, pair: str | None, roles: dict[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a frame around texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(raw, trainers.BpeTrainer(
        vocab_size=N_VOCAB, special_tokens=specials, initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    framing = [(token, i) for i, token in enumerate(specials)]
    raw.post_processor = processors.TemplateProcessing(single=single, pair=pair or "$A $B", special_tokens=framing)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, **(roles or {"bos_token": specials[0], "eos_token": specials[1]})
    )


def write(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def _train(raw: Tokenizer, trainer: Any) -> None:
    raw.train_from_iterator([Path(tiny.__file__).read_text(encoding="utf-8")], trainer)


# --- models that come with code of their own, which transformers does not have --------------------------------


class JinaBert(torch.nn.Module):
    """Jina's BERT of 2023, written from its paper: ALiBi to both sides, gated GELU, norms behind."""

    def __init__(self, width: int = 64, n_layers: int = 3, n_heads: int = 6, inner: int = 96) -> None:
        super().__init__()
        self.n_heads = n_heads
        Linear, Norm, Embedding = torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Embedding
        width = width // n_heads * n_heads
        self.width = width
        part = torch.nn.ModuleDict

        def layer() -> torch.nn.Module:
            own = part({name: Linear(width, width) for name in ("query", "key", "value")})
            output = part({"dense": Linear(width, width), "LayerNorm": Norm(width, eps=1e-12)})
            mlp = {"gated_layers": Linear(width, 2 * inner, bias=False), "wo": Linear(inner, width),
                   "layernorm": Norm(width, eps=1e-12)}  # fmt: skip
            return part({"attention": part({"self": own, "output": output}), "mlp": part(mlp)})

        self.embeddings = part({
            "word_embeddings": Embedding(N_VOCAB, width), "token_type_embeddings": Embedding(2, width),
            "LayerNorm": Norm(width, eps=1e-12)})  # fmt: skip
        self.encoder = part({"layer": torch.nn.ModuleList([layer() for _ in range(n_layers)])})

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        e, n = self.embeddings, input_ids.shape[1]
        x = e["LayerNorm"](e["word_embeddings"](input_ids) + e["token_type_embeddings"].weight[0])
        distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        bias = -torch.tensor(self.slopes())[:, None, None] * distance
        for layer in self.encoder["layer"]:
            own, output, mlp = layer["attention"]["self"], layer["attention"]["output"], layer["mlp"]
            heads = [own[name](x).view(1, n, self.n_heads, -1).transpose(1, 2) for name in ("query", "key", "value")]
            found = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=bias[None].float())
            x = output["LayerNorm"](x + output["dense"](found.transpose(1, 2).reshape(1, n, -1)))
            gate, up = mlp["gated_layers"](x).chunk(2, dim=-1)
            x = mlp["layernorm"](x + mlp["wo"](torch.nn.functional.gelu(gate) * up))
        return x[0]

    def slopes(self) -> list[float]:
        """Of 6 heads: those of 4, and every second of 8, as Press et al. (2021) have it."""

        def of_power(n: int) -> list[float]:
            return [2 ** (-(2.0 ** -(math.log2(n) - 3)) * (i + 1)) for i in range(n)]

        n = 2 ** math.floor(math.log2(self.n_heads))
        return of_power(n) + of_power(2 * n)[0::2][: self.n_heads - n]


def save_jina(folder: Path) -> tuple[JinaBert, Any]:
    torch.manual_seed(3)
    model, tokenizer = randomized(JinaBert()), wordpiece()
    folder.mkdir()
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "model.safetensors")
    write(folder / "config.json", {
        "architectures": ["JinaBertForMaskedLM"], "model_type": "bert", "hidden_size": model.width,
        "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "vocab_size": N_VOCAB,
        "max_position_embeddings": 512, "position_embedding_type": "alibi", "feed_forward_type": "geglu",
    })  # fmt: skip
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def save_first_nomic(folder: Path) -> tuple[Any, Any]:
    """Nomic's BERT in the form that came with code of its own: one matrix for queries, keys and values."""
    model, tokenizer = model_of(FAMILIES, "nomic"), wordpiece()
    state = model.state_dict()
    own = {"emb_ln": "embeddings.LayerNorm"}
    names: dict[str, Callable[[], torch.Tensor]] = {}
    for i in range(3):
        layer = {"attn.out_proj": "self_attn.o_proj", "norm1": "post_attention_layernorm", "mlp.fc11": "mlp.up_proj",
                 "mlp.fc12": "mlp.gate_proj", "mlp.fc2": "mlp.down_proj", "norm2": "post_mlp_layernorm"}  # fmt: skip
        own |= {f"encoder.layers.{i}.{first}": f"layers.{i}.{now}" for first, now in layer.items()}
        qkv = [state[f"layers.{i}.self_attn.{x}_proj.weight"] for x in "qkv"]
        names[f"encoder.layers.{i}.attn.Wqkv.weight"] = lambda qkv=qkv: torch.cat(qkv)
    tensors = {name: x for name, x in state.items() if name.startswith("embeddings.") and "LayerNorm" not in name}
    for first, now in own.items():
        tensors |= {f"{first}.{end}": state[f"{now}.{end}"] for end in ("weight", "bias") if f"{now}.{end}" in state}
    tensors |= {name: make() for name, make in names.items()}
    folder.mkdir()
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    write(folder / "config.json", {
        "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "n_embd": 64, "n_inner": 96, "n_layer": 3,
        "n_head": 4, "vocab_size": N_VOCAB, "n_positions": 8192, "max_trained_positions": 512,
        "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "activation_function": "swiglu", "causal": False,
        "prenorm": False, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
        "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "layer_norm_epsilon": 1e-12,
    })  # fmt: skip
    tokenizer.save_pretrained(folder)
    return model, tokenizer
