"""Reordering one model to lie next to another: planted orders come back, functions stay."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

import landform as lf
from landform.errors import CheckpointError, ConfigError, SpaceMismatchError, StoreError
from landform.results import from_parts, to_parts
from landform.weights import alignment as module
from landform.weights.alignment import _nearest, _probe, align, align_once
from landform.weights.checkpoint import load_model
from landform.weights.matching import assign, match_weights, propose
from landform.weights.permutations import (
    Symmetries,
    describe_symmetries,
    identity,
    permute,
)

COMMON = {
    "vocab_size": 45,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
T5 = {"vocab_size": 45, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}
GPT2 = {"vocab_size": 45, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
DISTIL = {"vocab_size": 45, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
DISTIL |= {"max_position_embeddings": 32, "pad_token_id": 0}
GROUPED = {**COMMON, "num_key_value_heads": 2, "eos_token_id": 3, "bos_token_id": 2}
DEBERTA = {**COMMON, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
DEBERTA |= {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "max_relative_positions": 16}

CASES = [
    ("bert", COMMON, "SequenceClassification"),
    ("bert", COMMON, "TokenClassification"),
    ("bert", COMMON, "MaskedLM"),
    ("bert", COMMON, ""),
    ("roberta", COMMON, "SequenceClassification"),
    ("roberta", COMMON, "MaskedLM"),
    ("electra", {**COMMON, "embedding_size": 8}, "SequenceClassification"),
    ("electra", {**COMMON, "embedding_size": 8}, "MaskedLM"),
    ("distilbert", DISTIL, "SequenceClassification"),
    ("distilbert", DISTIL, "MaskedLM"),
    ("gpt2", GPT2, "CausalLM"),
    ("gpt2", GPT2, "SequenceClassification"),
    ("llama", GROUPED, "CausalLM"),
    ("llama", {**GROUPED, "num_key_value_heads": 1}, "SequenceClassification"),
    ("mistral", GROUPED, "CausalLM"),
    ("qwen2", GROUPED, "CausalLM"),
    ("qwen3", {**GROUPED, "head_dim": 8}, "CausalLM"),
    ("gemma", {**GROUPED, "head_dim": 8}, "CausalLM"),
    ("gemma2", {**GROUPED, "head_dim": 8}, "CausalLM"),
    ("gpt_neox", COMMON, "CausalLM"),
    ("t5", T5, "Seq2SeqLM"),
    ("t5", T5, "SequenceClassification"),
    ("t5", T5, ""),
    ("mt5", {**T5, "tie_word_embeddings": False}, "Seq2SeqLM"),
    ("deberta-v2", {**DEBERTA, "share_att_key": False}, "SequenceClassification"),
    ("deberta-v2", {**DEBERTA, "share_att_key": True, "embedding_size": 8,
                    "position_biased_input": False, "type_vocab_size": 0}, "MaskedLM"),
]  # fmt: skip
cases = pytest.mark.parametrize(
    ("name", "options", "head"), CASES, ids=[f"{n}-{h or 'bare'}-{i}" for i, (n, _, h) in
                                              enumerate(CASES)],
)  # fmt: skip


def make(name, options, head, seed=0, dtype=torch.float64):
    """A random model whose every tensor, biases and norms too, has an effect."""
    config = hf.AutoConfig.for_model(name, **options)
    auto = getattr(hf, f"AutoModelFor{head}" if head else "AutoModel")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model.to(dtype).eval()


def tensors_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def random_orders(symmetries, seed=0):
    rng = np.random.default_rng(seed)
    return {
        s.name: np.stack([rng.permutation(s.size) for _ in range(s.batch)]) for s in symmetries.all
    }


def shuffle(model, symmetries, seed=0, noise=0.0):
    """Apply random orders of every symmetry at once; the tensors as they are then."""
    parameters = dict(model.named_parameters())
    orders = random_orders(symmetries, seed)
    for name, tensor in permute(tensors_of(model), symmetries.all, orders).items():
        parameters[name].data = tensor
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += (noise * drawn).to(parameter.dtype)
    return tensors_of(model)


def largest(x, y):
    return max(float((x[n] - y[n]).abs().max()) for n in x)


# --- every architecture ---------------------------------------------------------------------------


@cases
def test_every_symmetry_leaves_the_function_as_it_is(name, options, head):
    model = make(name, options, head)
    symmetries = describe_symmetries(model)
    before, outputs = tensors_of(model), _probe(model)
    after = shuffle(model, symmetries)
    assert largest(before, after) > 0.1
    allowed = 5e-5 if symmetries.single else 1e-12
    for x, y in zip(outputs, _probe(model), strict=True):
        assert float((x - y).abs().max()) < allowed


@cases
def test_one_wrong_slot_would_be_seen(name, options, head):
    """The check of the function is sharp: each symmetry, moved without one of its slots, shows."""
    model = make(name, options, head)
    symmetries = describe_symmetries(model)
    before, outputs = tensors_of(model), _probe(model)
    chosen = next(s for s in symmetries.all if s.name.endswith(("residual", "values")))
    parameters = dict(model.named_parameters())
    for missing in (chosen.slots[0], chosen.slots[-1]):
        slots = tuple(slot for slot in chosen.slots if slot is not missing)
        broken = type(chosen)(chosen.name, chosen.batch, chosen.size, slots)
        for n, tensor in permute(before, [broken], random_orders(symmetries)).items():
            parameters[n].data = tensor
        after = _probe(model)
        assert max(float((x - y).abs().max()) for x, y in zip(outputs, after, strict=True)) > 1e-3
        for n, tensor in before.items():
            parameters[n].data = tensor


@cases
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_planted_order_is_recovered(name, options, head, noise):
    model = make(name, options, head)
    symmetries = describe_symmetries(model)
    original = tensors_of(model)
    planted = shuffle(model, symmetries, seed=3, noise=noise)
    found = match_weights(original, planted, symmetries)
    clean = make(name, options, head)
    shuffled = shuffle(clean, symmetries, seed=3)
    back = shuffled | permute(shuffled, symmetries.all, found.permutations)
    assert all(torch.equal(back[n], original[n]) for n in original)


@cases
def test_every_tensor_of_a_headed_model_has_its_place(name, options, head):
    model = make(name, options, head)
    symmetries = describe_symmetries(model)
    covered = {n for block in symmetries.blocks for n in block.tensors}
    left = {n for n in tensors_of(model) if n not in covered}
    parts = {block.part for block in symmetries.blocks}
    if not head:
        assert parts == {"heads", "feed_forward"} and "order is kept" in symmetries.notes[0]
        return
    assert parts == {"heads", "feed_forward", "residual"}
    # What stays has an entry for each label, token or dimension of all heads alike.
    assert all(n.endswith(("bias", "q_norm.weight", "k_norm.weight")) for n in left), left


def test_rotary_models_keep_the_order_of_queries_and_keys():
    rotary = describe_symmetries(make("llama", GROUPED, "CausalLM"))
    assert not [s for s in rotary.all if s.name.endswith("keys")]
    assert any("rotary" in note for note in rotary.notes)
    plain = describe_symmetries(make("gpt2", GPT2, "CausalLM"))
    assert len([s for s in plain.all if s.name.endswith("keys")]) == 2


def test_one_table_of_positions_ties_the_heads_of_all_layers():
    blocks = describe_symmetries(make("t5", T5, "Seq2SeqLM")).only(("heads",)).blocks
    assert sorted((b.name, len(b.attention)) for b in blocks) == [
        ("decoder.block.0.cross.heads", 1),
        ("decoder.block.1.cross.heads", 1),
        ("decoder.heads", 2),
        ("encoder.heads", 2),
    ]


# --- against brute force --------------------------------------------------------------------------


def product(a, b):
    return sum(float((a[n] * b[n]).sum()) for n in a)


def every_order(symmetries):
    """All combinations of all permutations of some symmetries."""
    choices = [
        [np.array(rows) for rows in itertools.product(itertools.permutations(range(s.size)),
                                                      repeat=s.batch)]
        for s in symmetries
    ]  # fmt: skip
    names = [s.name for s in symmetries]
    for combination in itertools.product(*choices):
        yield dict(zip(names, combination, strict=True))


SMALL = {**COMMON, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 4}
SMALL |= {"num_hidden_layers": 1}
SMALL_GROUPED = {**SMALL, "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("bert", SMALL, "feed_forward"),
        ("bert", SMALL, "heads"),
        ("llama", SMALL_GROUPED, "feed_forward"),
        ("llama", SMALL_GROUPED, "heads"),
        ("gpt2", {**GPT2, "n_embd": 4, "n_head": 2, "n_layer": 1}, "heads"),
        ("gpt_neox", SMALL, "heads"),
    ],
)
def test_one_block_is_solved_exactly(name, options, part, seed):
    head = "SequenceClassification"
    a, b = (tensors_of(make(name, options, head, seed=n)) for n in (seed, seed + 10))
    symmetries = describe_symmetries(make(name, options, head)).only([part])
    block = symmetries.blocks[0]
    values = [product(a, b | permute(b, block.symmetries, order)) for order in
              every_order(block.symmetries)]  # fmt: skip
    found = product(a, b | permute(b, block.symmetries, propose(block, a, b)))
    assert found == pytest.approx(max(values), rel=1e-9)
    assert max(values) > product(a, b) + 1e-6  # there was something to find


def test_an_entry_names_the_unit_that_comes_there():
    model = make("bert", SMALL, "SequenceClassification")
    symmetries = describe_symmetries(model)
    units = next(s for s in symmetries.all if s.name == "bert.encoder.layer.0.feed_forward")
    before = tensors_of(model)
    moved = permute(before, [units], {units.name: np.array([[2, 0, 3, 1]])})
    rows = "bert.encoder.layer.0.intermediate.dense.weight"
    columns = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(moved[rows], before[rows][[2, 0, 3, 1]])
    assert torch.equal(moved[columns], before[columns][:, [2, 0, 3, 1]])
    assert set(moved) == {rows, columns, rows.replace("weight", "bias")}


def test_equal_units_stay_where_they_are():
    assert assign(np.ones((5, 5))).tolist() == [0, 1, 2, 3, 4]
    assert assign(np.zeros((3, 3))).tolist() == [0, 1, 2]


# --- never farther --------------------------------------------------------------------------------


@given(
    seeds=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    restarts=st.integers(1, 4),
    rounds=st.integers(1, 3),
    parts=st.sets(st.sampled_from(["heads", "feed_forward", "residual"]), min_size=1),
)
def test_the_distance_never_grows(seeds, restarts, rounds, parts):
    models = [make("bert", SMALL, "SequenceClassification", seed=s) for s in seeds]
    points = [tensors_of(model) for model in models]
    symmetries = describe_symmetries(models[0]).only(parts)
    options = {"restarts": restarts, "max_iterations": rounds, "seed": seeds[0]}
    found = match_weights(points[0], points[1], symmetries, **options)
    orders, (_, _, before, after) = _nearest(points, symmetries, found)
    assert after <= before
    moved = points[1] | permute(points[1], symmetries.all, orders)
    exact = sum(float((points[0][n] - moved[n]).square().sum()) for n in moved) ** 0.5
    assert after == pytest.approx(exact, rel=1e-12)
    if seeds[0] == seeds[1]:
        assert after == 0 and all((orders[s.name] == identity(s)).all() for s in symmetries.all)
    again = match_weights(points[0], points[1], symmetries, **options)
    assert all((again.permutations[n] == found.permutations[n]).all() for n in again.permutations)


# --- as checkpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory, save_checkpoint, word_tokenizer):
    """(a, b): b is a with its units shuffled and a little noise."""
    root = tmp_path_factory.mktemp("pair")
    save_checkpoint(root / "a", num_attention_heads=4)
    model = load_model(root / "a")
    shuffle(model, describe_symmetries(model), seed=5, noise=0.002)
    model.save_pretrained(root / "b")
    word_tokenizer.save_pretrained(root / "b")
    return root / "a", root / "b"


def labelled_by(checkpoint, path, write_rows):
    """A task whose labels are what a checkpoint answers: there it is as good as can be."""
    rows = pd.read_csv(write_rows(path, 60), sep="\t")
    task = lf.load_task(path, text="sentence", label="label")
    rows["label"] = lf.evaluate(checkpoint, task).log["prediction"].to_numpy()
    rows.to_csv(path, sep="\t", index=False)
    return lf.load_task(path, text="sentence", label="label")


def test_the_barrier_of_a_shuffled_copy_vanishes(pair, tmp_path, write_rows):
    a, b = pair
    task = labelled_by(a, tmp_path / "dev.tsv", write_rows)
    aligned = lf.align(a, b, tmp_path / "aligned")
    report = aligned.report
    assert report.distance_after < 0.05 * report.distance_before
    assert report.exact < 1e-12 and report.moved > 50
    before = lf.interpolate(a, b, task, points=5).table.loss
    after = lf.interpolate(a, aligned, task, points=5).table.loss
    assert after.iloc[-1] == pytest.approx(before.iloc[-1], abs=1e-6)  # the same function
    rise = before.max() - max(before.iloc[0], before.iloc[-1])
    left = after.max() - max(after.iloc[0], after.iloc[-1])
    assert rise > 0.05 and left < 0.02 * rise, (rise, left)
    assert (tmp_path / "aligned" / "tokenizer.json").read_bytes() == (
        b / "tokenizer.json"
    ).read_bytes()
    assert aligned.spec == str(tmp_path / "aligned") and aligned.label_names()


def test_the_permutations_are_those_of_the_copy(pair, tmp_path):
    a, b = pair
    aligned = align(a, b, tmp_path / "aligned")
    model = load_model(b)
    symmetries = describe_symmetries(model)
    expected = tensors_of(model) | permute(tensors_of(model), symmetries.all, aligned.permutations)
    found = tensors_of(load_model(aligned))
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    kept = json.loads((tmp_path / "aligned" / "alignment.json").read_text())
    assert kept["distance_after"] == aligned.report.distance_after


def test_the_report_adds_up(pair):
    report = align(*pair, parts=("heads", "feed_forward")).report
    assert not (report.parts["part"] == "residual").any()
    report = align(*pair).report
    squares = (report.parts[["distance_before", "distance_after"]] ** 2).sum()
    # Only the bias of the classifier, one entry a label, belongs to no part.
    assert squares.distance_before**0.5 == pytest.approx(report.distance_before, rel=1e-3)
    assert report.parts["size"].tolist().count(24) == 2
    again = from_parts(*to_parts(report))
    assert again.reading == report.reading and again.parts.equals(report.parts)
    assert json.dumps(report.to_json())


def test_identity_where_nothing_is_to_be_gained(pair, tmp_path, save_checkpoint):
    a, _ = pair
    same = align(a, a)
    assert same.report.reading.startswith("identity: already aligned") and same.report.moved == 0
    assert same.report.distance_after == same.report.distance_before == 0
    # A fine-tuned pair: one starting point, two small steps.
    for n in range(2):
        model = load_model(a)
        generator = torch.Generator().manual_seed(n)
        for p in model.parameters():
            p.data += 0.01 * torch.randn(p.shape, generator=generator)
        model.save_pretrained(tmp_path / str(n))
        shutil.copy(a / "tokenizer.json", tmp_path / str(n))
    report = align(tmp_path / "0", tmp_path / "1").report
    assert report.moved == 0 and report.distance_after == report.distance_before > 0
    assert "fine-tuned from one pre-trained model" in report.reading


def test_tied_weights_and_the_number_format_are_kept(tmp_path, word_tokenizer):
    from safetensors import safe_open

    for n in range(2):
        model = make("gpt2", GPT2, "CausalLM", seed=n, dtype=torch.bfloat16)
        model.save_pretrained(tmp_path / str(n))
    aligned = align(tmp_path / "0", tmp_path / "1")
    with safe_open(aligned.weight_files[0], "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"BF16"}
    assert "lm_head.weight" not in names
    model = load_model(aligned)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert aligned.report.exact < 1e-12 and aligned.report.moved


def test_a_temporary_copy_goes_with_the_process(pair, monkeypatch):
    registered = []
    monkeypatch.setattr(module.atexit, "register", registered.append)
    aligned = align(*pair)
    assert aligned.path.is_dir() and aligned.spec == f"{pair[1]}-aligned"
    (remove,) = registered
    with monkeypatch.context() as other:
        other.setattr(module.os, "getpid", lambda: -1)  # a fork that ends
        remove()
    assert aligned.path.is_dir()
    remove()
    assert not aligned.path.parent.exists()


def test_an_alignment_that_is_there_already_is_used_again(pair, tmp_path, monkeypatch):
    first = align_once(*pair, tmp_path / "out")
    monkeypatch.setattr(module, "match_weights", None)
    again = align_once(*pair, tmp_path / "out")
    assert again.report.reading == first.report.reading
    assert again.report.parts.equals(first.report.parts) and again.spec == first.spec
    assert all((again.permutations[n] == o).all() for n, o in first.permutations.items())
    with pytest.raises(StoreError, match="other checkpoints, or with other options"):
        align_once(*pair, tmp_path / "out", seed=1)


def test_an_aligned_checkpoint_in_a_study_file(pair, tmp_path, write_rows):
    from landform.studies.study_file import StudyFile, describe_study, run_study

    write_rows(tmp_path / "dev.tsv", 16)
    names = {"a": str(pair[0]), "b": str(pair[1])}
    options = {
        "study": "study",
        "tasks": {"dev": {"task": "dev.tsv", "text": "sentence", "label": "label"}},
        "steps": [
            {"align": {**names, "out": "study/aligned"}},
            {"interpolate": {"a": names["a"], "b": "study/aligned", "task": "dev", "points": 3}},
        ],
    }
    file = StudyFile.of(options, base=tmp_path, where="study.yaml")
    assert [row["step"] for row in describe_study(file)] == ["1 align", "2 interpolate"]
    assert not (tmp_path / "study").exists()
    for _ in range(2):
        said = []
        run_study(file, progress=False, say=said.append)
        assert "residual coordinates" in said[0] and "convexity gap" in said[1]


# --- refused --------------------------------------------------------------------------------------


def test_two_architectures_are_refused(pair, tmp_path, save_checkpoint):
    other = save_checkpoint(tmp_path / "other", num_attention_heads=2)
    with pytest.raises(SpaceMismatchError, match="num_attention_heads"):
        align(pair[0], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_place_is_refused_before_any_work(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises(StoreError, match="exists already"):
        align(*pair, tmp_path)


def test_unknown_architectures_and_parts_are_named(tmp_path):
    model = make("bert", SMALL, "SequenceClassification")
    model.config.model_type = "mamba"
    with pytest.raises(CheckpointError, match="'mamba' models are not known"):
        describe_symmetries(model)
    model = make("bert", SMALL, "SequenceClassification")
    model.bert.encoder.layer[0].extra = torch.nn.Linear(4, 4)
    with pytest.raises(CheckpointError, match=r"layer\.0\.extra\.weight \(4, 4\) is not recog"):
        describe_symmetries(model, "runs/odd")


def test_a_copy_that_computes_something_else_is_not_written(pair, tmp_path, monkeypatch):
    describe = describe_symmetries

    def forgetful(model, spec="the model"):
        blocks = describe(model, spec).blocks
        for block in blocks:
            for symmetry in block.symmetries:
                kept = tuple(s for s in symmetry.slots if "pooler" not in s.name)
                object.__setattr__(symmetry, "slots", kept)
        return Symmetries(blocks)

    monkeypatch.setattr(module, "describe_symmetries", forgetful)
    with pytest.raises(CheckpointError, match="computes something else"):
        align(*pair, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_absurd_options_are_refused(pair):
    for options in ({"restarts": 0}, {"parts": ()}, {"parts": ("tails",)}, {"origin": "x"}):
        with pytest.raises(ConfigError):
            align(*pair, **options)
