"""
QwenForCausalLM against outputs of the reference implementation (tests/data/tiny_qwen) and, in other sizes, against
plain torch (reference_qwen.py). Both compute in float32; 1e-4 is ten times the rounding seen.
"""
import json

import mindspore as ms
import numpy as np
import pytest
import torch
from mindformers import GenerationConfig, LlamaConfig
from mindspore import Parameter, Tensor, nn, ops
from safetensors.torch import save_file

from helpers import TINY, reference_qwen
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.model.config import QwenConfig

TOLERANCE = 1e-4
GREEDY = {"do_sample": False, "eos_token_id": []}
LONG_CONTEXT = {"ntk_logn": (True, True), "ntk": (True, False), "logn": (False, True), "plain": (False, False)}


def golden(name):
    path = TINY / name
    return json.loads(path.read_text()) if path.suffix == ".json" else np.load(path)


def generate_with_logits(model, prompt, new_tokens):
    """Ids [new_tokens] and the logits [new_tokens, vocab_size] that chose them, one sequence."""
    out = model.generate(prompt, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True, **GREEDY)
    return out.sequences[0][len(prompt):].tolist(), np.stack([step.reshape(-1) for step in out.logits])


@pytest.fixture(scope="module", params=[True, False], ids=["use_past", "no_past"])
def model(request, build_tiny):
    return build_tiny(use_past=request.param, batch_size=3)


def test_logits_of_whole_sequences(model):
    expected = golden("forward.npz")
    actual = model(Tensor(expected["input_ids"])).asnumpy()
    np.testing.assert_allclose(actual, expected["logits"], atol=TOLERANCE)


def test_logits_of_the_last_valid_position_of_each_sequence(model):
    expected = golden("forward.npz")
    lengths = np.array([24, 10], np.int32)
    actual = model(Tensor(expected["input_ids"]), batch_valid_length=Tensor(lengths)).asnumpy()
    np.testing.assert_allclose(actual, expected["logits"][[0, 1], lengths - 1], atol=TOLERANCE)


@pytest.mark.parametrize("case", range(3))
def test_greedy_continuation_and_its_logits_step_by_step(model, case):
    expected, steps = golden("greedy.json"), golden("greedy_step_logits.npz")[f"step_logits_{case}"]
    ids, logits = generate_with_logits(model, expected["prompts"][case], 32)
    assert ids == expected["greedy"][case]
    np.testing.assert_allclose(logits[:len(steps)], steps, atol=TOLERANCE)


def test_a_ragged_batch_continues_as_each_prompt_alone(model):
    expected = golden("greedy.json")
    prompts = expected["prompts"]
    out = model.generate(prompts, max_new_tokens=32, **GREEDY)
    assert [ids[len(prompt):].tolist() for ids, prompt in zip(out, prompts)] == expected["greedy"]


def test_padding_on_either_side_is_no_part_of_a_prompt(model):
    expected = golden("greedy.json")
    prompts, width, pad = expected["prompts"], 20, 511
    right = [prompt + [pad] * (width - len(prompt)) for prompt in prompts]
    left = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    for out in (model.generate(right, max_new_tokens=8, pad_token_id=pad, **GREEDY),
                model.generate(left, attention_mask=mask, max_new_tokens=8, pad_token_id=pad, **GREEDY)):
        assert [ids[len(prompt):].tolist() for ids, prompt in zip(out, prompts)] == [
            ids[:8] for ids in expected["greedy"]]


@pytest.mark.parametrize("use_past", [True, False])
@pytest.mark.parametrize("name", LONG_CONTEXT)
def test_beyond_the_training_length(build_tiny, name, use_past):
    ntk, logn = LONG_CONTEXT[name]
    expected = golden("long_context.npz")
    prompt = expected["input_ids"].tolist()
    model = build_tiny(use_past=use_past, use_dynamic_ntk=ntk, use_logn_attn=logn)
    whole = model(Tensor([prompt], ms.int32)).asnumpy()[0, -4:]
    np.testing.assert_allclose(whole, expected[f"prefill_last_logits_{name}"], atol=TOLERANCE)
    ids, logits = generate_with_logits(model, prompt, 8)
    np.testing.assert_allclose(logits, expected[f"decode_logits_{name}"], atol=TOLERANCE)
    assert ids == golden("long_context_greedy.json")[name]


def test_ntk_is_fixed_by_the_prompt_when_decoding_crosses_the_training_length(model):
    expected = golden("long_context.npz")
    ids, logits = generate_with_logits(model, expected["crossing_ids"].tolist(), 12)
    np.testing.assert_allclose(logits, expected["decode_logits_crossing"], atol=TOLERANCE)
    assert ids == golden("long_context_greedy.json")["crossing"]


def test_an_8_bit_cache_is_the_references(build_tiny):
    """
    Levels are cut off, not rounded: by the last bit of float32 a number falls on this or that side of a level's edge.
    All 16 steps are within 0.015 of the reference's, which is 0.1 from its own float32; rounded levels, or a scale for
    each token of the prompt, would be 0.06 away and more.
    """
    expected = golden("kv_cache_int8.npz")
    prompt = expected["input_ids"].tolist()
    for is_quantized, name, tolerance in ((True, "int8", 0.03), (False, "fp32", TOLERANCE)):
        model = build_tiny(use_past=True, use_cache_quantization=is_quantized)
        ids, logits = generate_with_logits(model, prompt, 16)
        assert ids == expected[f"greedy_{name}"].tolist()
        np.testing.assert_allclose(logits, expected[f"step_logits_{name}"], atol=tolerance)


def test_an_8_bit_cache_serves_a_ragged_batch_in_a_third_of_the_memory(build_tiny):
    model = build_tiny(use_past=True, use_cache_quantization=True, batch_size=3)
    prompts = golden("greedy.json")["prompts"]
    alone = [generate_with_logits(model, prompt, 3)[1] for prompt in prompts]
    out = model.generate(prompts, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **GREEDY)
    np.testing.assert_allclose(np.stack(out.logits, 1), alone, atol=0.03)
    attention = model.transformer.layers[0].attention
    slots, width, heads = 3 * 512, 64, 4  # a head of 16 has a scale and a zero; the released models' heads have 128
    assert [(cache.shape, cache.dtype) for cache in attention.caches()] == 2 * [((slots, width), ms.uint8)] + 2 * [
        ((slots, 2 * heads), ms.float32)]


def test_ntk_is_each_sequences_own_in_a_batch(model):
    prompts = [golden("greedy.json")["prompts"][2], golden("long_context.npz")["input_ids"].tolist()]
    out = model.generate(prompts, max_new_tokens=8, **GREEDY)
    assert out[0][len(prompts[0]):].tolist() == golden("greedy.json")["greedy"][2][:8]
    assert out[1][len(prompts[1]):].tolist() == golden("long_context_greedy.json")["ntk_logn"]


def test_calls_are_independent_of_each_other(model):
    prompts = golden("greedy.json")["prompts"]
    first = model.generate(prompts[0], max_new_tokens=6, **GREEDY)[0].tolist()
    model.generate(golden("long_context.npz")["input_ids"].tolist(), max_new_tokens=3, **GREEDY)
    assert model.generate(prompts[0], max_new_tokens=6, **GREEDY)[0].tolist() == first


def test_a_new_length_is_not_compiled_again(model):
    prompt = golden("long_context.npz")["input_ids"].tolist()
    model.generate(prompt[:7], max_new_tokens=2, **GREEDY)
    graphs = len(model.compile_cache)
    for length in (1, 16, 17, 120):
        model.generate(prompt[:length], max_new_tokens=2, **GREEDY)
    assert len(model.compile_cache) == graphs


OTHER_SIZES = {
    "head 16, one layer": dict(hidden_size=48, num_attention_heads=3, kv_channels=16, intermediate_size=100,
                               num_hidden_layers=1, layer_norm_epsilon=1e-5, rotary_emb_base=500.0),
    "head 128, base of the 72B": dict(hidden_size=256, num_attention_heads=2, kv_channels=128, intermediate_size=400,
                                      num_hidden_layers=2, layer_norm_epsilon=1e-6, rotary_emb_base=1000000),
    "head 80, wider than hidden": dict(hidden_size=96, num_attention_heads=5, kv_channels=80, intermediate_size=66,
                                       num_hidden_layers=2, layer_norm_epsilon=1e-4, rotary_emb_base=10000),
}


@pytest.mark.parametrize("sizes", OTHER_SIZES.values(), ids=OTHER_SIZES)
@pytest.mark.parametrize("use_past", [True, False])
def test_other_sizes_equal_plain_torch(tmp_path, sizes, use_past):
    hf = {"model_type": "qwen", "vocab_size": 320, "seq_length": 24, "max_position_embeddings": 160,
          "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False, "no_bias": True, **sizes}
    weights = reference_qwen.random_weights(hf)
    (tmp_path / "config.json").write_text(json.dumps(hf))
    save_file(weights, tmp_path / "model.safetensors")
    convert_weight(str(tmp_path), str(tmp_path / "ms"))
    model = QwenForCausalLM(QwenConfig.from_hf_config(
        tmp_path, use_past=use_past, batch_size=2, checkpoint_name_or_path=str(tmp_path / "ms")))
    model.set_train(False)
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(320, (length,), generator=generator).tolist() for length in (9, 70)]
    out = model.generate(prompts, max_new_tokens=5, return_dict_in_generate=True, output_logits=True, **GREEDY)
    logits = np.stack([step.reshape(2, -1) for step in out.logits], 1)
    for row, prompt in enumerate(prompts):
        ids, expected = reference_qwen.greedy(hf, weights, prompt, 5)
        assert out.sequences[row][len(prompt):].tolist() == ids
        np.testing.assert_allclose(logits[row], expected.numpy(), atol=TOLERANCE)


def test_tied_head(build_tiny):
    model = QwenForCausalLM(QwenConfig.from_hf_config(TINY, tie_word_embeddings=True, use_dynamic_ntk=False))
    names = [parameter.name for parameter in model.get_parameters()]
    assert "lm_head.weight" not in names and "transformer.wte.embedding_weight" in names
    ids = Tensor([[1, 2, 3]], ms.int32)
    hidden = model.transformer(ids, None, None, None, None, None).asnumpy()
    weight = model.transformer.wte.embedding_weight.asnumpy()
    np.testing.assert_allclose(model(ids).asnumpy()[0], hidden @ weight.T, atol=TOLERANCE)


def test_loss_and_gradients_of_a_training_step(build_tiny):
    expected = golden("train_step.json")
    model = build_tiny(use_past=False)
    model.set_train()
    inputs = [Tensor(expected[name], ms.int32) for name in ("input_ids", "labels")]
    parameters = model.trainable_params()
    loss, gradients = ops.value_and_grad(model, None, parameters)(*inputs)
    assert abs(float(loss) - expected["loss"]) < 1e-5
    norms = {parameter.name: float(ops.norm(gradient)) for parameter, gradient in zip(parameters, gradients)}
    assert abs(norms["transformer.wte.embedding_weight"] - expected["grad_norms"]["transformer.wte.weight"]) < 1e-4
    assert abs(norms["lm_head.weight"] - expected["grad_norms"]["lm_head.weight"]) < 1e-4
    for layer in range(3):
        mine = [norms[f"transformer.layers.{layer}.attention.w{name}.weight"] for name in "qkv"]
        theirs = expected["grad_norms"][f"transformer.h.{layer}.attn.c_attn.weight"]
        assert abs(float(np.linalg.norm(mine)) - theirs) < 1e-4


def test_weights_may_change_between_prompts(build_tiny):
    """By training, by loading others, and by writing into them."""
    model = build_tiny(use_past=True)
    prompt = golden("greedy.json")["prompts"][0]
    generate_with_logits(model, prompt, 2)

    step = nn.TrainOneStepCell(model, nn.SGD(model.trainable_params(), 0.5))
    step.set_train()
    step(Tensor(golden("train_step.json")["input_ids"], ms.int32))
    assert_same_as_anew(model, build_tiny, prompt)

    other = {name: Parameter(Tensor(0.5 * weight), name=name) for name, weight in weights_of(model).items()}
    ms.load_param_into_net(model, other)
    del other
    assert_same_as_anew(model, build_tiny, prompt)

    norm = model.transformer.layers[0].attention_norm.weight
    norm.set_data(Tensor(np.zeros(norm.shape, np.float32)))
    assert_same_as_anew(model, build_tiny, prompt)


def weights_of(model):
    return {parameter.name: parameter.asnumpy().copy() for parameter in model.get_parameters()
            if not parameter.name.endswith("_cache")}


def assert_same_as_anew(model, build_tiny, prompt):
    """The model computes what one does that is built now and given its weights."""
    anew, weights = build_tiny(use_past=True), weights_of(model)
    for parameter in anew.get_parameters():
        if parameter.name in weights:
            parameter.set_data(Tensor(weights[parameter.name]))
    (ids, logits), (expected_ids, expected) = (generate_with_logits(each, prompt, 3) for each in (model, anew))
    assert ids == expected_ids
    np.testing.assert_array_equal(logits, expected)


def test_as_a_part_of_another_cell_it_computes_the_same(model):
    class Outer(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.inner = model

        def construct(self, ids):
            return self.inner(ids) * 2

    ids = Tensor(golden("forward.npz")["input_ids"])
    outer = Outer().set_train(False)
    np.testing.assert_allclose(outer(ids).asnumpy(), 2 * model(ids).asnumpy(), atol=TOLERANCE)


def test_without_labels_the_text_itself_is_learnt_but_not_its_padding(build_tiny):
    model = build_tiny(use_past=False, pad_token_id=0)
    model.set_train()
    ids = golden("train_step.json")["input_ids"][:1]
    labels = [ids[0][:20] + [-100] * 4]
    padded = [ids[0][:20] + [0] * 4]
    without = float(model(Tensor(padded, ms.int32)))
    # the padding that follows the last token is learnt as its end, and no more
    with_labels = float(model(Tensor(padded, ms.int32), Tensor([labels[0][:20] + [0] + [-100] * 3], ms.int32)))
    assert abs(without - with_labels) < 1e-6


def test_computes_in_float32_on_the_cpu_whatever_the_config_says(build_tiny):
    model = build_tiny(compute_dtype="bfloat16", param_init_type="float16")
    assert {str(parameter.dtype) for parameter in model.trainable_params()} == {"Float32"}


def test_the_cache_is_as_large_as_batch_and_seq_length_need(build_tiny):
    model = build_tiny(use_past=True, batch_size=2, seq_length=100)
    key, value = model.kvcache(0)
    assert key.size == value.size == 2 * 112 * 64, "two sequences of seven blocks of 16, 64 values a token"
    assert not any("cache" in parameter.name for parameter in build_tiny(use_past=False).get_parameters())


def test_builds_from_a_plain_llama_config():
    model = QwenForCausalLM(LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=300,
                                        multiple_of=32, seq_length=64, kv_channels=16, rotary_emb_base=10000))
    assert isinstance(model.config, QwenConfig)
    assert model.transformer.layers[0].feed_forward.w1.weight.shape == (192, 64)


def test_streamers_and_generation_configs_work(model):
    class Collect:
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, ids):
            self.ids.append(ids)

        def end(self):
            self.ended = True

    expected = golden("greedy.json")
    streamer = Collect()
    settings = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=[], use_past=model.use_past)
    model.generate(expected["prompts"][1], generation_config=settings, streamer=streamer)
    assert streamer.ids[1:] == expected["greedy"][1][:4] and streamer.ended


def test_generation_ends_at_an_eos_and_at_the_end_of_the_room(model):
    expected = golden("greedy.json")
    prompt, answer = expected["prompts"][1], expected["greedy"][1]
    out = model.generate(prompt, do_sample=False, eos_token_id=[answer[2], answer[5]], max_new_tokens=30)
    assert out[0][len(prompt):].tolist() == answer[:3]
    long = golden("long_context.npz")["input_ids"].tolist() * 2
    out = model.generate(long, max_new_tokens=500, **GREEDY)
    assert len(out[0]) == model.config.seq_length == 512


@pytest.mark.parametrize("prompt, settings, said", [
    ([], {}, "prompt 0 is empty"),
    ([[1, 2], [511, 511]], {"pad_token_id": 511}, "prompt 1 is empty"),
    ([1, 512], {}, "id 512 is outside the vocabulary of 512"),
    ([1, -3], {}, "id -3 is outside the vocabulary of 512"),
    ([1] * 512, {}, "prompt 0 has 512 tokens and the model holds 512"),
    ([1] * 20, {"max_length": 20}, "max_length=20"),
    ([[1, 2]], {"attention_mask": [[1]]}, "attention_mask"),
])
def test_prompts_that_can_not_be_answered_are_refused(model, prompt, settings, said):
    with pytest.raises(ValueError, match=said):
        model.generate(prompt, **{**GREEDY, **settings})


def test_a_batch_larger_than_the_cache_is_refused_before_any_work(build_tiny):
    model = build_tiny(use_past=True, batch_size=1, seq_length=64)
    with pytest.raises(ValueError, match="3 prompts need 12 blocks of the key/value cache, which has 4"):
        model.generate([[1], [2], [3]], max_length=64, **GREEDY)
    assert len(model.generate([[1], [2], [3]], max_new_tokens=10, **GREEDY)) == 3, "short ones fit together"
