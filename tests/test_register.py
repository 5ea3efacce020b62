"""
Three ways to have MindFormers know Qwen: the .pth of scripts/setup.sh, an import of one of the flat modules, and
MindFormers' own `auto_register`. Each in a process of its own.
"""
import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers import ROOT

pytestmark = pytest.mark.process

# Whatever .pth this environment has: none of ours, so far.
UNHOOKED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "_AfterMindFormers"]
sys.modules.pop("qwen_mindspore.register", None)
"""
IS_KNOWN = """
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
print([MindFormerRegister.is_exist(kind, name) for kind, name in (
    (MindFormerModuleType.MODELS, "QwenForCausalLM"), (MindFormerModuleType.CONFIG, "QwenConfig"),
    (MindFormerModuleType.TOKENIZER, "QwenTokenizer"), (MindFormerModuleType.PROCESSOR, "QwenProcessor"))])
"""
PREDICT = """
from mindformers.trainer import Trainer
task = Trainer(args={config!r}, task="text_generation")
print(task.predict(input_data="Once upon a time", predict_checkpoint={checkpoint!r}))
"""


def run(code, folder, **variables):
    result = subprocess.run([sys.executable, "-c", UNHOOKED + code], cwd=folder, capture_output=True, text=True,
                            timeout=300, check=False, env={**os.environ, **variables})
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("first, known", [
    ("", False),
    ("import qwen_mindspore.register", True),
    ("import mindformers, qwen_mindspore.register", True),
    ("import mindformers, qwen_model", True),
    ("from qwen_config import QwenConfig", True),  # the other flat modules begin alike: tests/test_house.py
    ("import qwen_mindspore.register\nfrom qwen_config import QwenConfig", True),
])
def test_who_registers(first, known, tmp_path):
    assert run(f"{first}\n{IS_KNOWN}", tmp_path) == str([known] * 4)


def test_other_modules_named_qwen_are_none_of_ours(tmp_path):
    for name in ("qwen_agent", "qwen_vl_utils"):
        (tmp_path / f"{name}.py").write_text("import mindformers\n")
    code = f"import qwen_mindspore.register\nimport qwen_vl_utils, qwen_agent\n{IS_KNOWN}"
    assert run(code, tmp_path) == str([True] * 4)


def test_a_model_that_can_not_be_imported_is_said_and_mindformers_is_there(tmp_path):
    code = """
import contextlib, io
import qwen_mindspore.register as register
register.MODEL = "qwen_mindspore.gone"
with contextlib.redirect_stderr(io.StringIO()) as said:
    import mindformers
print(mindformers.__name__, [line for line in said.getvalue().splitlines() if "Qwen is" in line])
"""
    assert run(code, tmp_path) == (
        "mindformers [\"Qwen is not registered with MindFormers: No module named 'qwen_mindspore.gone'\"]")


def test_the_pth_is_silent_where_the_package_is_gone(tmp_path):
    """`pip uninstall` leaves the .pth: Python must start as ever."""
    line = re.search(r'echo "(import .*)"', (ROOT / "scripts/setup.sh").read_text())[1]
    (tmp_path / "qwen_register.pth").write_text(line + "\n")
    code = f"import site, sys; site.addsitedir({str(tmp_path)!r}); print('qwen_mindspore.register' in sys.modules)"

    def started():
        return subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)

    gone = started()
    (tmp_path / "editable.pth").write_text(f"{ROOT}/research/qwen\n")  # earlier in the alphabet
    there = started()
    assert (gone.stdout, gone.stderr) == ("False\n", "")
    assert (there.stdout, there.stderr) == ("True\n", "")


@pytest.mark.parametrize("first", ["import qwen_mindspore.register", "import qwen_model"])
def test_the_trainer_takes_a_yaml_that_inherits(first, tmp_path, tiny_ckpt, tiny_hf, tiny_settings):
    config = inheriting(tmp_path, tiny_settings, tiny_hf / "qwen.tiktoken")
    code = PREDICT.format(config=config, checkpoint=str(tiny_ckpt))
    assert "text_generation_text" in run(f"{first}\n{code}", tmp_path)


def test_mindformers_own_seam(tmp_path, tiny_ckpt, tiny_hf, tiny_settings):
    """`run_mindformer.py --register_path research/qwen` sets REGISTER_PATH; the YAML says what it finds there."""
    config = inheriting(tmp_path, tiny_settings, tiny_hf / "qwen.tiktoken", auto_register=True)
    code = PREDICT.format(config=config, checkpoint=str(tiny_ckpt))
    # Copies of the modules go below HOME; kernels that were built are below the usual one.
    assert "text_generation_text" in run(code, tmp_path, REGISTER_PATH=str(ROOT / "research/qwen"), HOME=str(tmp_path),
                                         QWEN_KERNELS="portable")


def inheriting(folder, settings, vocabulary, auto_register=False):
    """The path of a YAML that says what the golden model differs in from the demo's, and where its classes are."""
    content = {"base_config": str(ROOT / "configs/predict_qwen_demo.yaml"),
               "model": {"model_config": settings, "arch": {}},
               "processor": {"tokenizer": {"vocab_file": str(vocabulary)}},
               "context": {"device_target": "CPU"}}
    if auto_register:
        content["model"]["model_config"] = {**settings, "auto_register": "qwen_config.QwenConfig"}
        content["model"]["arch"]["auto_register"] = "qwen_model.QwenForCausalLM"
        content["processor"]["auto_register"] = "qwen_processor.QwenProcessor"
        content["processor"]["tokenizer"]["auto_register"] = "qwen_tokenizer.QwenTokenizer"
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)
