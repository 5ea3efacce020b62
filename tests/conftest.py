"""What several test files share: the golden model, checkpoints of it, and a place for MindFormers' logs."""
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("LOG_MF_PATH", tempfile.mkdtemp(prefix="qwen-test-log-"))
sys.path[:0] = [str(ROOT / "research/qwen"), str(ROOT / "convert"), str(ROOT / "scripts"), str(ROOT / "tests")]

import base64  # noqa: E402
import shutil  # noqa: E402

import pytest  # noqa: E402

DATA = ROOT / "tests/data"
TINY = DATA / "tiny_qwen"


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
    from convert_weight import convert_weight
    out = tiny_hf.parent / "ms"
    convert_weight(str(tiny_hf), str(out))
    return out


@pytest.fixture(scope="session")
def tiny_ckpt(tiny_hf):
    """The golden model as one .ckpt, alone in its folder with its vocabulary."""
    from convert_weight import convert_weight
    out = tiny_hf.parent / "ms_ckpt" / "qwen.ckpt"
    out.parent.mkdir()
    convert_weight(str(tiny_hf), str(out))
    return out


@pytest.fixture(scope="session")
def build_tiny(tiny_checkpoint):
    """A function that builds the golden model, with settings that differ from its config.json."""
    from qwen_config import QwenConfig
    from qwen_model import QwenForCausalLM

    def build(**overrides):
        config = QwenConfig.from_hf_config(TINY, checkpoint_name_or_path=str(tiny_checkpoint), **overrides)
        model = QwenForCausalLM(config)
        model.set_train(False)
        return model

    return build
