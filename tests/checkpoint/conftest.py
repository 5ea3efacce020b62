"""A hub on loopback with a small model, and an empty cache."""
import shutil

import pytest

from helpers import DATA
from helpers.checkpoints import CONFIG, random_tensors, save, write_hf_folder
from helpers.hub import serving

NAME = "Qwen/Qwen-tiny"


@pytest.fixture
def source(tmp_path):
    """The folder of the model on the hub, with what is not to be fetched beside it."""
    folder = write_hf_folder(tmp_path / "source", random_tensors(), {**CONFIG, "seq_length": 32})
    save(folder / "pytorch_model.bin", random_tensors())
    for other in ("modeling_qwen.py", "README.md", "tokenization_qwen.py", "model/other.safetensors"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_text("print('not to be run')")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, source):
    """The hub; huggingface_hub asks it, and writes after every 256 bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    monkeypatch.setattr("qwen_mindspore.checkpoint.hub.PAUSE", 0.0)
    repositories = {NAME: source} | {f"Qwen/{name}": DATA / name for name in ("gptq_int4", "gptq_int8")}
    with serving(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def unreachable(hub, monkeypatch):
    """A function after which the hub is not there any more."""
    def close():
        hub.close()
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)

    return close


@pytest.fixture
def other(hub, tmp_path):
    """A function of changes that adds another model to the hub: files that differ, None for those that it lacks."""
    def add(name, **changes):
        folder = tmp_path / name.replace("/", "--")
        shutil.copytree(hub.repositories[NAME], folder)
        for file, content in changes.items():
            (folder / file).unlink(missing_ok=True)
            if content is not None:
                (folder / file).write_text(content)
        hub.repositories[name] = folder
        return name

    return add
