"""The golden model and checkpoints of it, and a place for MindFormers' logs."""
import os
import tempfile

os.environ.setdefault("LOG_MF_PATH", tempfile.mkdtemp(prefix="qwen-test-log-"))

import base64
import functools
import gc
import shutil

import pytest
import yaml

from helpers import ROOT, TINY
from qwen_mindspore.common.configs import read_config


def _stay(exit, process, code):
    """Ending this process at once would look as if every test had passed; a fork may."""
    assert os.getpid() != process, f"os._exit({code}) in the tests' own process"
    exit(code)


os._exit = functools.partial(_stay, os._exit, os.getpid())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """
    What starts processes of its own comes last: a fault in a unit is seen before the minutes that those take. What
    wants a browser runs only where it is named (-m browser): few machines have one.
    """
    if "browser" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("browser")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.get_closest_marker("process") is not None)


def pytest_collection_finish():
    """MindSpore collects garbage at every compilation: it need not look at what the imports have left each time."""
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory):
    """The golden model as a Hugging Face folder, with a vocabulary of the 256 bytes and the control tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "hf"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, folder)
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_hf):
    """The golden model as convert_weight.py writes it: a folder of safetensors with its vocabulary."""
    from qwen_mindspore.checkpoint.convert import convert_weight
    out = tiny_hf.parent / "ms"
    convert_weight(str(tiny_hf), str(out))
    return out


@pytest.fixture(scope="session")
def tiny_ckpt(tiny_hf):
    """The golden model as one .ckpt, alone in its folder with its vocabulary."""
    from qwen_mindspore.checkpoint.convert import convert_weight
    out = tiny_hf.parent / "ms_ckpt" / "qwen.ckpt"
    out.parent.mkdir()
    convert_weight(str(tiny_hf), str(out))
    return out


@pytest.fixture(scope="session")
def build_tiny(tiny_checkpoint):
    """A function that builds the golden model, with settings that differ from its config.json."""
    from qwen_mindspore.generate.loop import QwenForCausalLM
    from qwen_mindspore.model.config import QwenConfig

    def build(**overrides):
        config = QwenConfig.from_hf_config(TINY, checkpoint_name_or_path=str(tiny_checkpoint), **overrides)
        model = QwenForCausalLM(config)
        model.set_train(False)
        return model

    return build


@pytest.fixture(scope="session")
def tiny_settings():
    """What the golden model's `model_config` differs in from the demo's."""
    return {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "kv_channels": 16,
            "intermediate_size": 176, "vocab_size": 512, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000,
            "train_seq_length": 64, "use_dynamic_ntk": True, "use_logn_attn": True, "seq_length": 256,
            "eos_token_id": [258, 257, 256], "pad_token_id": 256}


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory, tiny_settings):
    """A function that writes a YAML of the golden model: the demo's with other sizes, and settings that differ."""
    def write(chat_format, **overrides):
        config = read_config(ROOT / "configs/predict_qwen_demo.yaml")
        config["model"]["model_config"].update(tiny_settings, chat_format=chat_format)
        config["model"]["model_config"].update(overrides)
        path = tmp_path_factory.mktemp("yaml") / "tiny.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    return write
