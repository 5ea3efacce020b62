"""
The ways of the first MindFormers port's manual, with a YAML as it was then, as typed there but for paths and
device: run in a process of its own, in an empty directory.
"""
import subprocess
import sys
import textwrap

import pytest

from qwen_chat import make_context
from qwen_tokenizer import QwenTokenizer

pytestmark = pytest.mark.process

OLD_YAML = """
seed: 0
output_dir: './output'
load_checkpoint: ''
auto_trans_ckpt: False
only_save_strategy: False
resume_training: False
run_mode: 'predict'
trainer:
  type: CausalLanguageModelingTrainer
  model_name: 'qwen_7b'
runner_config:
  epochs: 1
  batch_size: 1
  sink_mode: True
  sink_size: 2
use_parallel: False
model:
  model_config:
    type: LlamaConfig
    batch_size: 1
    seq_length: 64
    hidden_size: 64
    num_hidden_layers: 3
    num_attention_heads: 4
    vocab_size: 512
    intermediate_size: 88
    rms_norm_eps: 1.0e-6
    emb_dropout_prob: 0.0
    eos_token_id: 256
    pad_token_id: 256
    compute_dtype: "float16"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float16"
    rotary_dtype: "float16"
    param_init_type: "float16"
    use_past: True
    offset: 0
    checkpoint_name_or_path: "CKPT"
    repetition_penalty: 1
    max_decode_length: 40
    top_k: 0
    top_p: 0.8
    do_sample: False
    rotary_pct: 1.0
    rotary_emb_base: 10000
    kv_channels: 16
  arch:
    type: QwenForCausalLM
processor:
  return_tensors: ms
  tokenizer:
    model_max_length: 8192
    vocab_file: "VOCAB"
    pad_token: "<|endoftext|>"
    type: QwenTokenizer
  type: QwenProcessor
context:
  mode: 0
  device_target: "CPU"
  device_id: 0
parallel:
  parallel_mode: 1
  gradients_mean: False
  full_batch: True
"""

TRAINER = """
from mindformers.trainer import Trainer

config = "./run/run_qwen_7b.yaml"
ckpt = "./run/qwen_7b_ms.ckpt"
task = Trainer(args=config, task="text_generation")

prompt = "Once upon a time"
result = task.predict(input_data=prompt, predict_checkpoint=ckpt)
print(result)
"""

GENERATE = """
import os
import mindspore as ms
from mindspore import context
from mindformers import LlamaConfig
from mindformers.tools.register.config import MindFormerConfig

from qwen_model import QwenForCausalLM
from qwen_tokenizer import QwenTokenizer

context.set_context(mode=ms.GRAPH_MODE, device_target="CPU", device_id=0)
data_path = './run'

config = MindFormerConfig(os.path.join(data_path, "run_qwen_7b.yaml"))
tokenizer = QwenTokenizer(**config.processor.tokenizer)

model_config = LlamaConfig.from_pretrained(os.path.join(data_path, "run_qwen_7b.yaml"))
model_config.checkpoint_name_or_path = os.path.join(data_path, "qwen_7b_ms.ckpt")
model = QwenForCausalLM(model_config)

def run_generate(prompt):
    inputs = tokenizer([prompt, ], return_tensors=None, padding='max_length', max_length=model_config.seq_length)
    output = model.generate(input_ids=inputs["input_ids"])
    print(tokenizer.decode(output, skip_special_tokens=True))

run_generate("Once upon a time")
"""

BATCH = """
import sys
import tiktoken
import mindspore as ms
from mindformers.tools.register.config import MindFormerConfig
from mindformers.models.llama.llama_config import LlamaConfig
from qwen_model import QwenForCausalLM
from qwen_tokenizer import QwenTokenizer

config = MindFormerConfig("./run/run_qwen_7b.yaml")
config.use_past = True

model_config = LlamaConfig.from_pretrained("./run/run_qwen_7b.yaml")
model_config.checkpoint_name_or_path = './run/qwen_7b_ms.ckpt'
model_config.seq_length = 48

tokenizer = QwenTokenizer(**config.processor.tokenizer)

ms.set_context(mode=ms.GRAPH_MODE, device_target='CPU', device_id=0)
ms.set_context(ascend_config={"precision_mode": "must_keep_origin_dtype"})

batch_size = 16
model_config.batch_size = batch_size
model = QwenForCausalLM(model_config)

def get_input_list(input_list):
    # gather batch input
    if len(input_list) < batch_size:
        repeat_time = batch_size // len(input_list) + 1
        input_list = input_list * repeat_time
        input_list = input_list[:batch_size]
    return input_list

def run_generate():
    input_list = ['Once upon a time', 'The', 'Hello, world']
    input_list = get_input_list(input_list)
    inputs = tokenizer(input_list, padding='max_length', max_length=model_config.seq_length, add_special_tokens=False)

    output = model.generate(input_ids=inputs["input_ids"], max_length=40, do_sample=False, top_k=3)
    print(tokenizer.decode(output, skip_special_tokens=True))

run_generate()
"""


CHAT = """
import os
import sys

import mindspore as ms
from mindformers.tools.register.config import MindFormerConfig

from mindformers.models.llama.llama_config import LlamaConfig

from qwen_model import QwenForCausalLM
from qwen_tokenizer import QwenTokenizer
from qwen_chat import chat

ms.set_context(mode=ms.GRAPH_MODE, device_target='CPU', device_id=0)
ms.set_context(ascend_config={"precision_mode": "must_keep_origin_dtype"})

config = MindFormerConfig("./run/run_qwen_7b.yaml")
tokenizer = QwenTokenizer(**config.processor.tokenizer)

model_config = LlamaConfig.from_pretrained("./run/run_qwen_7b.yaml")
model_config.checkpoint_name_or_path = './run/qwen_7b_ms.ckpt'
model_config.seq_length = 2048

model = QwenForCausalLM(model_config)

history = None
query = '你好'
response, history = chat(model, tokenizer, query, history)
print(response)

query = '给我讲一个年轻人奋斗创业最终取得成功的故事。'
response, history = chat(model, tokenizer, query, history)
print(history)
"""


@pytest.fixture
def folder(tmp_path, tiny_ckpt, tiny_hf):
    """An empty directory with the manual's ./run in it."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "qwen_7b_ms.ckpt").symlink_to(tiny_ckpt)
    yaml = OLD_YAML.replace("CKPT", str(tiny_ckpt)).replace("VOCAB", str(tiny_hf / "qwen.tiktoken"))
    (run / "run_qwen_7b.yaml").write_text(yaml)
    return tmp_path


@pytest.fixture(scope="module")
def answers(build_tiny, tiny_hf):
    """What the model, checked against the reference elsewhere, answers to the prompts with 40 tokens in all."""
    tokenizer = QwenTokenizer(str(tiny_hf))
    model = build_tiny(use_past=True, pad_token_id=256)
    return [tokenizer.decode(model.generate(tokenizer.encode(prompt), max_length=40, do_sample=False,
                                            eos_token_id=[256])[0], skip_special_tokens=True)
            for prompt in ("Once upon a time", "The", "Hello, world")]


def last_line(code, folder):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True,
                            timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()[-1]


def test_trainer_as_typed(folder, answers):
    assert last_line(TRAINER, folder) == str([{"text_generation_text": answers[:1]}])


def test_generate_as_typed(folder, answers):
    assert last_line(GENERATE, folder) == str(answers[:1])


def test_batch_as_typed(folder, answers):
    assert last_line(BATCH, folder) == str((answers * 6)[:16])


def test_chat_as_typed(folder, build_tiny, tiny_hf):
    # The YAML says nothing of NTK and LogN, so they are off; it allows answers of 40 tokens.
    tokenizer = QwenTokenizer(str(tiny_hf))
    model = build_tiny(use_past=True, use_dynamic_ntk=False, use_logn_attn=False, seq_length=1024)
    history = []
    for query in ("你好", "给我讲一个年轻人奋斗创业最终取得成功的故事。"):
        prompt = make_context(tokenizer, query, history)[1]
        ids = model.generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=[256, 257, 258])[0]
        history.append((query, tokenizer.decode(ids[len(prompt):], skip_special_tokens=True).strip()))
    assert last_line(CHAT, folder) == str(history)


def test_script_as_typed(folder, answers):
    from helpers import ROOT
    result = subprocess.run(
        [sys.executable, str(ROOT / "research/qwen/run_qwen_7b.py"), "--config", "run/run_qwen_7b.yaml",
         "--predict_data", "Once upon a time", "--run_mode", "predict", "--load_checkpoint", "run/qwen_7b_ms.ckpt",
         "--device_id", "0"], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == answers[0] + "\n"
