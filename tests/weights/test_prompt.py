"""Soft prompts: embeddings by hand, padding, gradients, generation, limits, disk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from landform.errors import ConfigError, DataError
from landform.weights.checkpoint import load_model
from landform.weights.space import ParameterSpace
from landform.weights.tuning import TuningConfig, save_model, tune
from tuned import (
    CAUSAL,
    ENCODERS,
    FAMILIES,
    SEQ2SEQ,
    call,
    each_family,
    family,
    generate,
    greedy,
    ids,
    padded,
)

LENGTH = 4


def prompted(name: str, seed: int = 1, **changes: Any) -> Any:
    model = family(name, **changes)
    torch.manual_seed(seed)
    config = TuningConfig(tuning="prompt", prompt_length=LENGTH, init_std=1.0, init_mean=0.3)
    return tune(model, config, head=False).eval()


def prompt_of(model: Any) -> Tensor:
    found = [p for name, p in model.named_parameters() if name.endswith("prompt.weight")]
    assert len(found) == 1
    return found[0].detach()


def table_of(model: Any) -> Any:
    return (
        model.get_encoder() if model.config.is_encoder_decoder else model
    ).get_input_embeddings()


def by_hand(name: str, prompt: Tensor, text: Tensor) -> Tensor:
    """Logits of the plain model for embeddings with the prompt in their place."""
    plain = family(name)
    after = 1 if name in ENCODERS else 0
    with torch.no_grad():
        e = table_of(plain)(text)
        own = prompt.expand(len(text), -1, -1)
        embeds = torch.cat([e[:, :after], own, e[:, after:]], 1)
        if plain.config.is_encoder_decoder:
            start = torch.tensor([[0, 7, 9]]).expand(len(text), -1)
            logits: Tensor = plain(inputs_embeds=embeds, decoder_input_ids=start).logits
        else:  # a decoder classifier without ids takes the last position, which is right
            logits = plain(inputs_embeds=embeds).logits
    return logits[:, LENGTH:] if name in CAUSAL else logits


@each_family()
def test_the_model_reads_the_prompt_before_the_text(name: str) -> None:
    model = prompted(name)
    # A decoder classifier warns of embeddings without ids in batches: one row.
    text = ids(1 if name == "gpt2-classifier" else 2, 6)
    with torch.no_grad():
        logits = call(model, text)
    wanted = by_hand(name, prompt_of(model), text)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["MaskedLM", "TokenClassification"])
def test_outputs_for_tokens_are_those_of_the_text(kind: str) -> None:
    import transformers as hf

    config = family("bert").config
    torch.manual_seed(0)
    model = getattr(hf, f"BertFor{kind}")(config).double().eval()
    plain = copy.deepcopy(model)
    tune(model, TuningConfig(tuning="prompt", prompt_length=LENGTH), head=False)
    text = ids(2, 6)
    labels = torch.arange(12).view(2, 6) % 2
    with torch.no_grad():
        e = plain.get_input_embeddings()(text)
        own = prompt_of(model).expand(2, -1, -1)
        long = plain(inputs_embeds=torch.cat([e[:, :1], own, e[:, 1:]], 1)).logits
        out = model(input_ids=text, labels=labels, output_hidden_states=True)
    wanted = torch.cat([long[:, :1], long[:, 1 + LENGTH :]], 1)
    torch.testing.assert_close(out.logits, wanted, rtol=1e-10, atol=1e-12)
    assert {tuple(states.shape[:2]) for states in out.hidden_states} == {(2, 6)}
    loss = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, loss)


@each_family()
def test_padding_changes_nothing(name: str) -> None:
    model = prompted(name)
    text = ids(2, 6)
    with torch.no_grad():
        alone = call(model, text, torch.ones_like(text))
        longer, mask = padded(model, text, 10)
        beside = call(model, longer, mask)[:, : alone.shape[1]]
        torch.testing.assert_close(call(model, text), alone, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(beside, alone, rtol=1e-9, atol=1e-11)


@each_family()
def test_gradients_reach_the_prompt_and_nothing_else(name: str) -> None:
    model = prompted(name)
    call(model, ids(2, 6)).pow(2).sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == set(model.landform_tuned) and len(reached) == 1


@each_family(*CAUSAL, *SEQ2SEQ)
def test_generation_with_a_cache_says_the_same(name: str) -> None:
    model = prompted(name)
    short, long = ids(1, 4, seed=3), ids(1, 7, seed=4)
    side = "right" if model.config.is_encoder_decoder else "left"
    rows = [padded(model, text, 7, side) for text in (short, long)]
    text, mask = (torch.cat(parts) for parts in zip(*rows, strict=True))
    said = generate(model, text, mask, 6)
    torch.testing.assert_close(said, greedy(model, text, mask, 6))
    torch.testing.assert_close(said, generate(model, text, mask, 6, use_cache=False))
    torch.testing.assert_close(said[:1], generate(model, short, torch.ones_like(short), 6))
    beams = {"num_beams": 2, "length_penalty": 0.0}
    torch.testing.assert_close(
        generate(model, text, mask, 4, **beams),
        generate(model, text, mask, 4, use_cache=False, **beams),
    )


@each_family()
def test_a_prompt_comes_back_from_disk(name: str, tmp_path: Any) -> None:
    family(name, dtype=torch.float32).save_pretrained(tmp_path / "base")
    kind = None if name in CAUSAL + SEQ2SEQ else "classification"
    model = load_model(tmp_path / "base", kind)
    config = TuningConfig(tuning="prompt", prompt_length=LENGTH, init_std=1.0)
    tune(model, config, head=kind is not None)
    save_model(model, tmp_path / "tuned", tmp_path / "base")
    read = load_model(tmp_path / "tuned")
    assert ParameterSpace.of(read) == ParameterSpace.of(model)
    text = ids(2, 6)
    with torch.no_grad():
        assert torch.equal(call(read, text), call(model.eval(), text))


def test_points_move_the_prompt() -> None:
    model = prompted("bert")
    space = ParameterSpace.of(model)
    assert (space.names, space.numel) == (("bert.prompt.weight",), LENGTH * 16)
    point = space.flatten(model) * 0.5
    text = ids(2, 6)
    with torch.no_grad():
        called = space.call(model, point, input_ids=text).logits
        before = call(model, text)
        twin = copy.deepcopy(model)
        space.bind(twin).move_to(point)
        torch.testing.assert_close(call(twin, text), called, rtol=0, atol=0)
        torch.testing.assert_close(call(model, text), before, rtol=0, atol=0)
    assert (called - before).abs().max() > 1e-3
    torch.testing.assert_close(called, by_hand("bert", prompt_of(twin), text))


@pytest.mark.parametrize(
    ("name", "positions"), [("bert", 40), ("roberta", 38), ("gpt2", 40), ("opt", 40), ("bart", 40)]
)
def test_inputs_that_do_not_fit_are_named(name: str, positions: int) -> None:
    model = prompted(name)
    with torch.no_grad():
        call(model, ids(1, positions - LENGTH))
        with pytest.raises(DataError, match=f"model's {positions} positions") as error:
            call(model, ids(1, positions - LENGTH + 1))
        assert f"max_length <= {positions - LENGTH}" in str(error.value)
        assert model.landform_text_positions == positions - LENGTH
        # and the refused call leaves nothing behind
        text = ids(1, 6)
        torch.testing.assert_close(call(model, text), by_hand(name, prompt_of(model), text))


@each_family("llama", "t5", "deberta")
def test_models_without_a_table_of_positions_have_no_limit(name: str) -> None:
    with torch.no_grad():
        call(prompted(name), ids(1, 60))


def test_prompts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="has a prompt already"):
        tune(prompted("bert"), TuningConfig(tuning="prompt", prompt_length=2), head=False)
    with pytest.raises(ConfigError, match="no room for text: the model has 40 positions"):
        tune(family("bert"), TuningConfig(tuning="prompt", prompt_length=40), head=False)
    model = prompted("llama")
    text = ids(1, 6)
    with pytest.raises(ConfigError, match="static cache"):
        generate(model, text, torch.ones_like(text), 3, cache_implementation="static")


@each_family("t5", "bart")
def test_outputs_of_the_encoder_may_be_given(name: str) -> None:
    """As where several answers to one text are read: the encoder runs once, before the model."""
    from transformers.modeling_outputs import BaseModelOutput

    model = prompted(name)
    text, mask = padded(model, ids(2, 6), 8)
    with torch.no_grad():
        states = model.get_encoder()(text, attention_mask=mask).last_hidden_state
        owners = torch.tensor([0, 0, 1])
        given = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states[owners]),
            attention_mask=mask[owners],
            decoder_input_ids=torch.tensor([[0, 7, 9]]).expand(3, -1),
        ).logits
        wanted = call(model, text, mask)[owners]
    assert states.shape[1] == 8 + LENGTH
    torch.testing.assert_close(given, wanted)


def test_a_failed_call_leaves_no_prompt_in_the_next_one() -> None:
    """The call fails before it reads its embeddings, which must be those of tokens afterwards."""
    model = prompted("t5")
    text = ids(1, 6)
    with torch.no_grad():
        right = call(model, text)
        with pytest.raises(IndexError):
            call(model, text + 1000)
        torch.testing.assert_close(model.encoder.embed_tokens(text), family("t5").shared(text))
        torch.testing.assert_close(call(model, text), right)


def test_counts() -> None:
    assert set(FAMILIES) > {"bert"}
    config = TuningConfig(tuning="prompt", prompt_length=7, init_mean=2.0, init_std=0.0)
    model = tune(family("bert"), config, head=True)
    assert bool((model.bert.prompt.weight == 2).all())
    assert model.landform_tuned == {"bert.prompt.weight", "classifier.weight", "classifier.bias"}
