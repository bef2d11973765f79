"""What the modules of each architecture read and write: where units of one kind are stored.

A table for each family of architectures; `landform.weights.permutations` makes symmetries of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FAMILIES", "Family", "Rule"]


@dataclass(frozen=True)
class Rule:
    """The roles of a module's axes: what it writes (rows of a Linear, and its bias) and reads.

    R residual stream, E the embeddings' own width (R where nothing projects it), F feed-forward
    units, U units of the hidden layer of a classifier, C what a classifier reads (U where there is
    such a layer, else R), q k v o h as in `Attention`; `qkv` the three one after the other and
    `qkv*` head by head; . an axis that stays.
    """

    pattern: str
    writes: str
    reads: str = "."


@dataclass(frozen=True)
class Family:
    """How a family of architectures is built."""

    rules: tuple[Rule, ...]
    rotary: bool = False
    """Whether queries and keys are rotated in pairs: their dimensions then have an order"""
    single: bool = False
    """Whether parts of the model run in float32 whatever the format of its weights"""

    def rule(self, path: str) -> tuple[Rule | None, re.Match[str] | None]:
        """The rule of the module at a path (without the model's wrapper), and what it matched."""
        for rule in self.rules:
            match = re.fullmatch(rule.pattern, path)
            if match:
                return rule, match
        return None, None


_BERT_LAYER = r"(?P<layer>(?:encoder|transformer)\.layer\.\d+)\."
_BERT = Family(
    (
        Rule(r"embeddings\.\w+_embeddings", ".", "E"),
        Rule(r"embeddings\.LayerNorm", "E"),
        Rule(r"embeddings_project|embeddings\.embed_proj", "R", "E"),
        Rule(_BERT_LAYER + r"attention\.(self\.(pos_)?query(_proj)?|q_lin)", "q", "R"),
        Rule(_BERT_LAYER + r"attention\.(self\.(pos_)?key(_proj)?|k_lin)", "k", "R"),
        Rule(_BERT_LAYER + r"attention\.(self\.value(_proj)?|v_lin)", "v", "R"),
        Rule(_BERT_LAYER + r"attention\.(output\.dense|out_lin)", "R", "o"),
        Rule(_BERT_LAYER + r"(intermediate\.dense|ffn\.lin1)", "F", "R"),
        Rule(_BERT_LAYER + r"(output\.dense|ffn\.lin2)", "R", "F"),
        Rule(_BERT_LAYER + r"((attention\.)?output\.LayerNorm|\w+_layer_norm)", "R"),
        Rule(r"encoder\.rel_embeddings", ".", "R"),
        Rule(r"encoder\.LayerNorm", "R"),
        Rule(r"(?P<layer>pooler|classifier)\.dense|(?P<head>pre_classifier)", "U", "R"),
        Rule(r"classifier(\.out_proj)?", ".", "C"),
        Rule(
            r"cls\.predictions\.transform\.dense|lm_head\.dense|vocab_transform"
            r"|generator_predictions\.dense",
            "E",
            "R",
        ),
        Rule(
            r"cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm"
            r"|generator_predictions\.LayerNorm",
            "E",
        ),
        Rule(
            r"cls\.predictions(\.decoder)?|lm_head(\.decoder)?|vocab_projector|generator_lm_head",
            ".",
            "E",
        ),
    )
)
# Projects the embeddings before their norm, not after.
_DEBERTA = Family((Rule(r"embeddings\.LayerNorm", "R"), *_BERT.rules))
_HEAD = Rule(r"lm_head|embed_out|score|classifier", ".", "R")
_GPT2_LAYER = r"(?P<layer>h\.\d+)\."
_GPT2 = Family(
    (
        Rule(r"wte|wpe", ".", "R"),
        Rule(_GPT2_LAYER + r"attn\.c_attn", "qkv", "R"),
        Rule(_GPT2_LAYER + r"attn\.c_proj", "R", "o"),
        Rule(_GPT2_LAYER + r"mlp\.c_fc", "F", "R"),
        Rule(_GPT2_LAYER + r"mlp\.c_proj", "R", "F"),
        Rule(_GPT2_LAYER + r"ln_[12]|ln_f", "R"),
        _HEAD,
    )
)
_LLAMA_LAYER = r"(?P<layer>layers\.\d+)\."
_LLAMA = Family(
    (
        Rule(r"embed_tokens", ".", "R"),
        *(Rule(_LLAMA_LAYER + rf"self_attn\.{r}_proj", r, "R") for r in "qkv"),
        Rule(_LLAMA_LAYER + r"self_attn\.o_proj", "R", "o"),
        Rule(_LLAMA_LAYER + r"self_attn\.[qk]_norm", "."),  # the same for all heads
        Rule(_LLAMA_LAYER + r"mlp\.(gate|up)_proj", "F", "R"),
        Rule(_LLAMA_LAYER + r"mlp\.down_proj", "R", "F"),
        Rule(_LLAMA_LAYER + r"\w+_layernorm|norm", "R"),
        _HEAD,
    ),
    rotary=True,
    single=True,
)
_NEOX = Family(
    (
        Rule(r"embed_in", ".", "R"),
        Rule(_LLAMA_LAYER + r"attention\.query_key_value", "qkv*", "R"),
        Rule(_LLAMA_LAYER + r"attention\.dense", "R", "o"),
        Rule(_LLAMA_LAYER + r"mlp\.dense_h_to_4h", "F", "R"),
        Rule(_LLAMA_LAYER + r"mlp\.dense_4h_to_h", "R", "F"),
        Rule(_LLAMA_LAYER + r"\w+_layernorm|final_layer_norm", "R"),
        _HEAD,
    ),
    rotary=True,
)
_T5_LAYER = r"(?P<layer>(?P<stack>encoder|decoder)\.block\.\d+)\.layer\.\d\."
_T5_ATTENTION = r"((?P<shared>SelfAttention)|(?P<cross>EncDecAttention))\."
_T5 = Family(
    (
        Rule(r"shared|(en|de)coder\.embed_tokens", ".", "R"),
        *(Rule(_T5_LAYER + _T5_ATTENTION + r, r, "R") for r in "qkv"),
        Rule(_T5_LAYER + _T5_ATTENTION + "o", "R", "o"),
        Rule(_T5_LAYER + r"(?P<shared>SelfAttention)\.relative_attention_bias", ".", "h"),
        Rule(_T5_LAYER + r"DenseReluDense\.wi(_\d)?", "F", "R"),
        Rule(_T5_LAYER + r"DenseReluDense\.wo", "R", "F"),
        Rule(_T5_LAYER + r"layer_norm|(en|de)coder\.final_layer_norm", "R"),
        Rule(r"(?P<layer>classification_head)\.dense", "U", "R"),
        Rule(r"classification_head\.out_proj", ".", "U"),
        _HEAD,
    ),
    single=True,
)
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    **{"distilbert": _BERT, "deberta-v2": _DEBERTA},
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), _LLAMA),
    "gpt_neox": _NEOX,
    **dict.fromkeys(("t5", "mt5"), _T5),
}
