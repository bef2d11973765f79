"""What every test shares: no network, no display, no clock in property tests."""

from __future__ import annotations

import gc
import os
import sys

# Set before anything imports a Hugging Face library or matplotlib: they read these only once.
for _name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[_name] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Imports and tests make hundreds of thousands of objects that stay; looking through the youngest
# seven hundred again and again is a seventh of the time.
gc.set_threshold(50_000)

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: there is no deadline, and the examples are always the same.
settings.register_profile(
    "landform",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("landform")

_imported = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Takes what was imported out of the garbage collector's sight.

    The Trainer collects garbage before every training, and half a million objects of torch,
    transformers and pandas, none of which ever goes away, would be walked over each time.
    """
    global _imported
    if len(sys.modules) > _imported + 100:
        _imported = len(sys.modules)
        gc.collect()
        gc.freeze()


from collections.abc import Iterator
from pathlib import Path
from typing import Any


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts commands and scripts in forks of a process that has imported everything."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    from zygote import Zygote

    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()


@pytest.fixture
def pickled_engine(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The engine "ray" does here what it asks of the work: worker, jobs and results are pickled,
    and results come back late and in another order. Gives the kinds of the jobs of every stage.

    A real cluster runs in tests/store/test_ray.py and tests/drills.
    """
    import pickle

    stages: list[list[str]] = []

    def elsewhere(jobs: Any, factory: Any, finish: Any, **_: Any) -> None:
        worker = pickle.loads(pickle.dumps(factory))()
        done = [(job, worker.run(pickle.loads(pickle.dumps(job)))) for job in jobs]
        stages.append([job.kind for job in jobs])
        for job, contents in reversed(done):
            finish(job, pickle.loads(pickle.dumps(contents)))

    monkeypatch.setattr("landform.store.ray_engine.run_on_ray", elsewhere)
    return stages


# --- tiny models with attention, made here in milliseconds ---------------------------------------


WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="session")
def word_tokenizer() -> Any:
    """A word-level tokenizer over w0 ... w39 with BERT's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def tiny_config(architecture: str = "bert", **changes: Any) -> Any:
    """A config of a real architecture, small enough for brute force in float64."""
    import transformers as hf

    size = len(WORDS) + 5
    common: dict[str, Any] = {"vocab_size": size, "pad_token_id": 0}
    if architecture == "bert":
        kind = hf.BertConfig
        common |= {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
        }
    elif architecture == "gpt2":
        kind = hf.GPT2Config
        common |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        common |= {"bos_token_id": 2, "eos_token_id": 3}
    elif architecture == "t5":
        kind = hf.T5Config
        common |= {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        common |= {"decoder_start_token_id": 0, "eos_token_id": 3}
    else:
        raise ValueError(architecture)
    return kind(**{**common, **changes})


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """Factory: `tiny_model(kind, architecture, seed, dtype, **config)` -> a random model."""
    import torch
    import transformers as hf

    classes = {
        "classification": hf.AutoModelForSequenceClassification,
        "regression": hf.AutoModelForSequenceClassification,
        "token-classification": hf.AutoModelForTokenClassification,
        "masked-lm": hf.AutoModelForMaskedLM,
        "causal-lm": hf.AutoModelForCausalLM,
        "seq2seq": hf.AutoModelForSeq2SeqLM,
    }

    def make(
        kind: str = "classification",
        architecture: str = "bert",
        seed: int = 0,
        dtype: Any = None,
        **changes: Any,
    ) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = classes[kind].from_config(tiny_config(architecture, **changes))
            # The usual 0.02 leaves random models nearly linear; larger weights make attention,
            # and so every mistake with padding, visible.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
        return model.to(dtype or torch.float64).eval()

    return make


@pytest.fixture(scope="session")
def save_checkpoint(tiny_model: Any, word_tokenizer: Any) -> Any:
    """Factory: `save_checkpoint(path, seed=0, **model options)` -> the path, saved as float32."""
    import torch

    def save(path: Path, **options: Any) -> Path:
        model = tiny_model(**{"dtype": torch.float32, **options})
        model.save_pretrained(path)
        word_tokenizer.save_pretrained(path)
        return Path(path)

    return save


@pytest.fixture(scope="session")
def write_rows() -> Any:
    """Factory: `write_rows(path, n, seed=0, classes=2)`: a TSV with columns sentence and label."""
    import random

    def write(path: Path, n: int, seed: int = 0, classes: int = 2) -> Path:
        generator = random.Random(seed)
        lines = ["sentence\tlabel"]
        for i in range(n):
            words = " ".join(generator.choice(WORDS) for _ in range(generator.randint(2, 12)))
            lines.append(f"{words}\t{i % classes}")
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Path(path)

    return write
