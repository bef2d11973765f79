import math

import pytest
import torch
import transformers as hf

from landform.errors import ConfigError, NonFiniteError, SpaceMismatchError
from landform.weights.space import ParameterSpace, check_same_buffers


def test_flat_point_is_the_parameters_in_order(tiny_model):
    model = tiny_model()
    space = ParameterSpace.of(model)
    expected = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(space.flatten(model), expected)
    assert space.numel == expected.numel() == sum(space.sizes)
    for name, view in space.unflatten(expected).items():
        assert torch.equal(view, dict(model.named_parameters())[name])


def test_bound_model_moves_with_its_buffer(tiny_model):
    a, b = tiny_model(seed=1), tiny_model(seed=2)
    space = ParameterSpace.of(a)
    x, y = space.flatten(a), space.flatten(b)
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    bound = space.bind(tiny_model(seed=3))
    for t in (0.0, 0.3, 1.0):
        bound.lerp(x, y, t)
        mixed = tiny_model(seed=4)
        with torch.no_grad():
            for p, q, r in zip(mixed.parameters(), a.parameters(), b.parameters(), strict=True):
                p.copy_((1 - t) * q + t * r)
            torch.testing.assert_close(bound.model(**inputs).logits, mixed(**inputs).logits)
    bound.lerp(x, y, 0.0)
    assert torch.equal(bound.flat, x), "the ends of a line are the checkpoints, bit for bit"
    bound.lerp(x, y, 1.0)
    assert torch.equal(bound.flat, y)


def test_binding_moves_memory_not_state(tiny_model):
    model = tiny_model()
    space = ParameterSpace.of(model)
    bound = space.bind(model)
    low = bound.flat.data_ptr()
    high = low + bound.flat.numel() * bound.flat.element_size()
    assert all(low <= p.data_ptr() < high for p in model.parameters())


def test_combine_is_the_weighted_sum(tiny_model):
    models = [tiny_model(seed=s) for s in range(3)]
    space = ParameterSpace.of(models[0])
    points = [space.flatten(m) for m in models]
    bound = space.bind(tiny_model(seed=9))
    bound.combine(points, [0.5, 0.75, -0.25])
    torch.testing.assert_close(bound.flat, 0.5 * points[0] + 0.75 * points[1] - 0.25 * points[2])
    with pytest.raises(ConfigError):
        bound.combine(points, [1.0])


def test_tied_weights_occur_once_and_move_together(tiny_model):
    model = tiny_model("masked-lm", tie_word_embeddings=True)
    space = ParameterSpace.of(model)
    assert sum(p.numel() for p in model.parameters()) == space.numel
    bound = space.bind(model)
    bound.flat.add_(1.0)
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert torch.equal(
        embedding,
        space.unflatten(bound.flat)[next(n for n in space.names if "word_embeddings" in n)],
    )


def test_integer_buffers_are_untouched(tiny_model):
    model = tiny_model()
    before = {n: b.clone() for n, b in model.named_buffers() if not b.is_floating_point()}
    assert before, "the model must have integer buffers for this test to say anything"
    space = ParameterSpace.of(model)
    space.bind(model).flat.mul_(0.5)
    for name, buffer in model.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])


def test_gradients_flow_to_the_flat_point(tiny_model):
    model = tiny_model()
    space = ParameterSpace.of(model)
    flat = space.flatten(model).requires_grad_()
    loss = space.call(model, flat, input_ids=torch.tensor([[2, 5, 3]])).logits.square().sum()
    loss.backward()
    reference = tiny_model()
    reference(input_ids=torch.tensor([[2, 5, 3]])).logits.square().sum().backward()
    expected = torch.cat(
        [
            (p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1)
            for p in reference.parameters()
        ]
    )
    torch.testing.assert_close(flat.grad, expected)


def test_mismatches_name_the_tensors(tiny_model):
    two, three = ParameterSpace.of(tiny_model()), ParameterSpace.of(tiny_model(num_labels=3))
    with pytest.raises(
        SpaceMismatchError, match=r"classifier\.weight is \(2, 16\) in A and \(3, 16\)"
    ):
        two.check_same(three, "A", "B")
    deeper = ParameterSpace.of(tiny_model(num_hidden_layers=3))
    with pytest.raises(SpaceMismatchError, match=r"layer\.2.*only in B"):
        two.check_same(deeper, "A", "B")
    with pytest.raises(SpaceMismatchError, match="dtype"):
        two.check_same(ParameterSpace.of(tiny_model(dtype=torch.float32)), "A", "B")
    two.check_same(ParameterSpace.of(tiny_model(seed=5)), "A", "B")


def test_mixed_dtypes_are_refused(tiny_model):
    model = tiny_model()
    model.classifier.half()
    with pytest.raises(SpaceMismatchError, match="classifier"):
        ParameterSpace.of(model)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_named(tiny_model, value):
    model = tiny_model()
    space = ParameterSpace.of(model)
    flat = space.flatten(model)
    space.check_finite(flat, "here")
    space.unflatten(flat)["classifier.weight"].view(-1)[3] = value
    with pytest.raises(NonFiniteError, match=r"here: 1 of 32 entries of tensor classifier\.weight"):
        space.check_finite(flat, "here")


@pytest.mark.parametrize("kind", ["tensor", "sublayer", "layer", "block", "head"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_groups_partition_the_space(tiny_model, kind, architecture):
    model = tiny_model(architecture=architecture)
    space = ParameterSpace.of(model)
    touched = torch.zeros(space.numel, dtype=torch.float64)
    for regions in space.groups(kind, config=model.config).values():
        for view in space.views(touched, regions):
            view.add_(1)
    assert torch.equal(touched, torch.ones_like(touched)), "every parameter in exactly one group"


def test_groups_have_the_names_people_expect(tiny_model):
    model = tiny_model()
    space = ParameterSpace.of(model)
    assert set(space.groups("layer")) == {
        "embeddings",
        "bert.encoder.layer.0",
        "bert.encoder.layer.1",
        "pooler",
        "classifier",
    }
    blocks = set(space.groups("block"))
    assert (
        "bert.encoder.layer.0.attention" in blocks and "bert.encoder.layer.1.feed_forward" in blocks
    )
    sub = space.groups("sublayer")["bert.encoder.layer.0.attention.self.query"]
    assert [r.name.rpartition(".")[2] for r in sub] == ["weight", "bias"]


def test_spans_are_where_tensors_lie_joined_where_they_touch():
    names, shapes = ("a", "b", "c", "d", "e"), ((2, 3), (4,), (1,), (5,), ())
    space = ParameterSpace(names, shapes, torch.float32)
    views = space.unflatten(torch.arange(space.numel, dtype=torch.float32))
    for chosen, joined in ((("b", "a"), 1), (("a", "c", "e"), 3), (("c", "d", "e"), 1), ((), 0)):
        found = space.spans(chosen)
        assert len(found) == joined
        entries = [k for start, stop in found for k in range(start, stop)]
        assert entries == [int(k) for n in names if n in chosen for k in views[n].reshape(-1)]


def test_attention_heads_are_the_right_slices(tiny_model):
    """Zeroing a head's output columns and another head's inputs: only that head must matter."""
    model = tiny_model()
    space = ParameterSpace.of(model)
    flat = space.flatten(model)
    groups = space.groups("head", config=model.config)
    head = groups["bert.encoder.layer.0.head.1"]
    columns = [r for r in head if r.name.endswith("attention.output.dense.weight")]
    assert [(r.axis, r.start, r.stop) for r in columns] == [(1, 8, 16)]
    for view in space.views(flat, columns):
        view.zero_()
    bound = space.bind(tiny_model())
    bound.move_to(flat)
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 11, 3]])}
    before = bound.model(**inputs).logits
    for view in space.views(bound.flat, [r for r in head if r not in columns]):
        view.normal_()  # queries, keys and values of a head whose output is cut off
    assert torch.allclose(bound.model(**inputs).logits, before)
    other = groups["bert.encoder.layer.0.head.0"]
    for view in space.views(bound.flat, other):
        view.normal_()
    assert not torch.allclose(bound.model(**inputs).logits, before)


def test_subspace_and_restrict(tiny_model):
    model = tiny_model()
    space = ParameterSpace.of(model)
    body = space.subspace(exclude=["classifier.*"])
    assert space.numel - body.numel == 2 * 16 + 2
    flat = space.flatten(model)
    assert torch.equal(space.restrict(flat, body), flat[: body.numel])
    bound = body.bind(model)
    head = model.classifier.weight.clone()
    bound.flat.zero_()
    assert torch.equal(model.classifier.weight, head), "what lies outside a subspace stays"
    assert not model.bert.embeddings.word_embeddings.weight.any()
    with pytest.raises(ConfigError, match="no tensor matches"):
        space.subspace(include=["nothing.*"])


def test_trainable_subspace(tiny_model):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    assert ParameterSpace.of(model, trainable=True).names == (
        "classifier.weight",
        "classifier.bias",
    )


# --- heads and blocks of other families -------------------------------------------------------


def llama(**changes):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 45}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = hf.LlamaConfig(**{**sizes, **heads, **changes})
    return hf.AutoModelForSequenceClassification.from_config(config).double().eval()


def deberta():
    config = hf.DebertaV2Config(
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 45},
        **{"intermediate_size": 48, "max_position_embeddings": 32, "pos_att_type": ["p2c", "c2p"]},
        **{"relative_attention": True, "share_att_key": False},
    )
    return hf.AutoModelForSequenceClassification.from_config(config).double().eval()


def silenced(model, head):
    """The largest change of the logits when rows of `head` are redrawn and its output is cut."""
    space = ParameterSpace.of(model)
    bound = space.bind(model)
    regions = space.groups("head", config=model.config)[head]
    outputs = [r for r in regions if r.axis == 1]
    assert outputs and len(outputs) < len(regions)
    for view in space.views(bound.flat, outputs):
        view.zero_()
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 11, 3]])}
    with torch.no_grad():
        before = model(**inputs).logits
        for view in space.views(bound.flat, [r for r in regions if r not in outputs]):
            view.normal_()
        return (model(**inputs).logits - before).abs().max()


@pytest.mark.parametrize(
    ("make", "head"),
    [(llama, "model.layers.1.head.1"), (deberta, "deberta.encoder.layer.0.head.2")],
)
def test_a_head_whose_output_is_cut_off_does_not_matter(make, head):
    # Were shared keys and values among the rows of the head, its neighbours would change.
    assert silenced(make(), head) < 1e-9


def test_shared_keys_and_values_are_groups_of_their_own():
    model = llama()
    space = ParameterSpace.of(model)
    groups = space.groups("head", config=model.config)
    layer = "model.layers.0"
    names = {name for name in groups if name.startswith(layer)}
    assert names == {
        *(f"{layer}.head.{h}" for h in range(4)),
        *(f"{layer}.kv_head.{h}" for h in (0, 1)),
    }
    shared = {r.name.split(".")[-2]: (r.start, r.stop) for r in groups[f"{layer}.kv_head.1"]}
    assert shared == {"k_proj": (8, 16), "v_proj": (8, 16)}
    own = {r.name.split(".")[-2]: (r.axis, r.start, r.stop) for r in groups[f"{layer}.head.1"]}
    assert own == {"q_proj": (0, 8, 16), "o_proj": (1, 8, 16)}
    equal = llama(num_key_value_heads=4)
    groups = ParameterSpace.of(equal).groups("head", config=equal.config)
    assert not any("kv_head" in name for name in groups) and len(groups[f"{layer}.head.1"]) == 4


@pytest.mark.parametrize("kind", ["block", "head"])
@pytest.mark.parametrize("make", [llama, deberta])
def test_groups_of_other_families_partition_the_space(make, kind):
    model = make()
    space = ParameterSpace.of(model)
    touched = torch.zeros(space.numel, dtype=torch.float64)
    for regions in space.groups(kind, config=model.config).values():
        for view in space.views(touched, regions):
            view.add_(1)
    assert torch.equal(touched, torch.ones_like(touched))


def test_deberta_heads_have_queries_keys_and_values():
    model = deberta()
    groups = ParameterSpace.of(model).groups("head", config=model.config)
    head = groups["deberta.encoder.layer.1.head.3"]
    assert {r.name.split(".")[-2] for r in head} == {
        *("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj", "dense"),
    }


def test_half_a_head_is_refused():
    """An output projection alone is no head: some models fuse the others in their own way."""
    space = ParameterSpace(
        ("enc.layer.0.attention.self.in_proj.weight", "enc.layer.0.attention.output.dense.weight"),
        ((48, 16), (16, 16)),
        torch.float32,
    )
    with pytest.raises(ConfigError, match=r"enc\.layer\.0.*output\.dense.*no query"):
        space.groups("head", config=hf.BertConfig(num_attention_heads=2))


def test_another_layout_under_the_name_of_gpt2_is_refused():
    names = [f"transformer.h.0.attn.{part}.weight" for part in ("c_attn", "c_proj")]
    config = hf.BertConfig(num_attention_heads=2)
    for shape in ((24, 16), (48, 16)):  # one shared key head; a Linear, not a Conv1D
        space = ParameterSpace(tuple(names), (shape, (16, 16)), torch.float32)
        with pytest.raises(ConfigError, match="no attention projections"):
            space.groups("head", config=config)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.0.input_layernorm.weight", "attention"),
        ("model.layers.0.post_attention_layernorm.weight", "feed_forward"),
        ("transformer.h.0.ln_1.weight", "attention"),
        ("transformer.h.0.ln_2.weight", "feed_forward"),
        ("deberta.encoder.layer.0.attention.output.LayerNorm.weight", "attention"),
        ("deberta.encoder.layer.0.output.LayerNorm.weight", "feed_forward"),
        ("encoder.block.0.layer.0.layer_norm.weight", "attention"),
        ("encoder.block.0.layer.1.layer_norm.weight", "feed_forward"),
        ("decoder.block.0.layer.0.layer_norm.weight", "attention"),
        ("decoder.block.0.layer.1.layer_norm.weight", "cross_attention"),
        ("decoder.block.0.layer.2.layer_norm.weight", "feed_forward"),
    ],
)
def test_norms_belong_to_the_block_they_serve(tiny_model, name, block):
    models = {"m": llama, "t": lambda: tiny_model("causal-lm", "gpt2"), "d": deberta}
    make = models["d" if name.startswith("deberta") else name[0]] if "block" not in name else None
    space = ParameterSpace.of(make() if make else tiny_model("seq2seq", "t5"))
    home = [g for g, regions in space.groups("block").items() if name in {r.name for r in regions}]
    assert [g.rpartition(".")[2] for g in home] == [block]


def test_attention_to_an_encoder_is_a_block_of_its_own():
    names = [
        "model.decoder.layers.0.self_attn.q_proj.weight",
        "model.decoder.layers.0.encoder_attn.q_proj.weight",
        "model.decoder.layers.0.encoder_attn_layer_norm.weight",
        "bert.encoder.layer.0.crossattention.output.LayerNorm.weight",
        "transformer.h.0.ln_cross_attn.weight",
    ]
    space = ParameterSpace(tuple(names), ((4,),) * 5, torch.float32)
    blocks = {r.name: g for g, regions in space.groups("block").items() for r in regions}
    parts = [blocks[name].rpartition(".")[2] for name in names]
    assert parts == ["attention", *["cross_attention"] * 4]


def test_the_groups_of_a_t5_base_are_those_of_the_mode_connectivity_code():
    """282 tensors; 60 sub-layers and 24 layers, each with 4 singletons (two stacks' last norms,
    the embedding and the head). Nothing is held in memory."""
    config = hf.T5Config(
        **{"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12},
        **{"num_decoder_layers": 12, "num_heads": 12, "feed_forward_proj": "gated-gelu"},
    )
    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(config)
        # transformers 5 unties the head of a T5 by what the file holds, not by its config.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        space = ParameterSpace.of(model)
    assert space.numel == 247_577_856
    assert {k: len(space.groups(k)) for k in ("tensor", "block", "layer")} == {
        "tensor": 282,
        "block": 64,
        "layer": 28,
    }


def test_a_norm_after_attention_belongs_to_it_where_the_feed_forward_block_has_its_own():
    layer = "model.layers.0"
    names = [f"{layer}.{n}.weight" for n in ("self_attn.q_proj", "post_attention_layernorm")]
    names.append(f"{layer}.pre_feedforward_layernorm.weight")
    space = ParameterSpace(tuple(names), ((4, 4), (4,), (4,)), torch.float32)
    blocks = {r.name: g for g, regions in space.groups("block").items() for r in regions}
    assert [blocks[n].rpartition(".")[2] for n in names] == ["attention"] * 2 + ["feed_forward"]


# --- buffers ----------------------------------------------------------------------------------


def test_stored_float_buffers_must_be_the_same(tiny_model):
    def model(value, **options):
        made = tiny_model()
        made.bert.register_buffer("scale", torch.tensor([1.0, value]), **options)
        return made

    check_same_buffers(model(2.0), model(2.0))
    check_same_buffers(model(math.nan), model(math.nan))
    check_same_buffers(model(2.0, persistent=False), model(3.0, persistent=False))
    with pytest.raises(SpaceMismatchError, match=r"bert\.scale has other values in A than in B"):
        check_same_buffers(model(2.0), model(3.0), "A", "B")
    with pytest.raises(SpaceMismatchError, match=r"bert\.scale only in B"):
        check_same_buffers(tiny_model(), model(3.0), "A", "B")
