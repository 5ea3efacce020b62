"""
The images and the scripts that start them, without docker: what they are built of is there and gets into the build,
what they run as and may write to, and what docker is asked for.
"""
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from helpers import ROOT
from qwen_mindspore.cli import chat
from qwen_mindspore.cli.main import VERBS

FOLDER = ROOT / "docker"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))
SCRIPTS = sorted(FOLDER.glob("*.sh"))
STARTERS = {"openai_api": 8000, "web_demo": 8901}

# Says what it was asked, one argument a line; images that are not in $IMAGES are not there.
FAKE = """#!/bin/bash
printf '%s\\n' "$@" == >> "$ASKED"
if [ "$1 $2" = "image inspect" ]; then [[ " $IMAGES " == *" $3 "* ]]; exit; fi
if [ "$1" = "${FAILS:-}" ]; then exit 1; fi
"""


def instructions(path):
    """[(name, text)] of a Dockerfile, lines that go on joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def values_of(path, name):
    return [text for found, text in instructions(path) if found == name]


def environment_of(path):
    return dict(pair.split("=", 1) for text in values_of(path, "ENV") for pair in text.split())


def is_ignored(path):
    """Whether a file or folder stays out of the build; the last pattern of .dockerignore that fits says."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if pattern and not pattern.startswith("#") and (fnmatchcase(path, pattern) or path.startswith(f"{pattern}/")):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_what_is_copied_is_there_and_gets_into_the_build(self, path):
        sources = [source for text in values_of(path, "COPY") for source in text.split()[:-1]]
        assert {"requirements.txt", "pyproject.toml", "research", "configs"} <= set(sources)
        for source in sources:
            assert (ROOT / source).exists() and not is_ignored(source), source

    def test_what_the_commands_read_was_copied_before(self, path):
        there = set()
        for name, text in instructions(path):
            if name == "COPY":
                *sources, target = text.split()
                there |= {f"{target}{source.split('/')[-1]}" if target.endswith("/") else target for source in sources}
                there.add(target.rstrip("/"))
            elif name == "RUN":
                for read in re.findall(r"/opt/build[\w./-]*", text):
                    assert read.rstrip("/.") in there, f"{read}: not copied"

    def test_what_the_project_needs_to_be_installed_is_copied(self, path):
        tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        sources = {source for text in values_of(path, "COPY") for source in text.split()[:-1]}
        needed = {project["project"]["readme"], *project["project"]["license-files"]}
        needed |= {place.split("/")[0] for place in project["tool"]["setuptools"]["package-dir"].values()}
        assert needed <= sources

    def test_it_is_not_run_as_root_and_writes_to_the_cache_and_to_tmp_alone(self, path):
        assert int(values_of(path, "USER")[-1]) >= 1000
        assert values_of(path, "VOLUME") == ["/cache"] and values_of(path, "WORKDIR") == ["/tmp"]
        environment = environment_of(path)
        places = {name: environment[name] for name in ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "LOG_MF_PATH",
                                                       "LOCAL_DEFAULT_PATH", "HF_HOME")}
        assert all(place.split("/")[1] in ("cache", "tmp") for place in places.values()), places

    def test_it_serves_where_its_health_is_asked_for(self, path):
        port = values_of(path, "EXPOSE")[0]
        assert environment_of(path)["QWEN_HEALTH_URL"] == f"http://127.0.0.1:{port}/health"
        command = re.findall(r'"([^"]*)"', values_of(path, "CMD")[0])
        assert command[command.index("--port") + 1] == port and command[0] in VERBS
        assert values_of(path, "ENTRYPOINT")[0] in ('["qwen-ms"]', '["ascend_entrypoint.sh"]')
        assert "QWEN_HEALTH_URL" in values_of(path, "HEALTHCHECK")[0]

    def test_torch_is_the_one_that_is_pinned_without_cuda(self, path):
        assert [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("torch==")]
        assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in values_of(path, "ARG")

    def test_hadolint_has_nothing_to_say(self, path):
        hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert hadolint, "it is pinned in requirements-test.txt"
        subprocess.run([hadolint, str(path)], check=True)


def test_weights_and_caches_stay_out_of_a_build():
    for path in ("qwen_7b_chat/model.safetensors", "research/x.safetensors", ".git/config", ".venv/bin/python", "tests",
                 "research/qwen/qwen_mindspore/__pycache__"):
        assert is_ignored(path) or is_ignored(path.split("/")[0]) or is_ignored(path.split("/")[-1]), path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", str(path)], check=True)


@pytest.fixture
def start(tmp_path):
    """A function that runs a script with a docker that only listens: (exit code, output, errors, what it was asked)."""
    fake, asked = tmp_path / "bin/docker", tmp_path / "asked"
    fake.parent.mkdir()
    fake.write_text(FAKE)
    fake.chmod(0o755)

    def start(name, *arguments, images="qwen-mindspore", devices=None, **environment):
        asked.write_text("")
        result = subprocess.run(
            ["bash", str(FOLDER / f"docker_{name}.sh"), *map(str, arguments)], capture_output=True, text=True,
            cwd=tmp_path, stdin=subprocess.DEVNULL, check=False,
            env={"PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}", "ASKED": str(asked), "IMAGES": images,
                 "DEVICES": str(devices or tmp_path / "dev"), **environment})
        commands = [part.strip("\n").split("\n") for part in asked.read_text().split("==\n") if part]
        return result.returncode, result.stdout, result.stderr, commands

    return start


@pytest.fixture
def checkpoint(tmp_path):
    """A model's folder, as far as the scripts look."""
    folder = tmp_path / "Qwen Chat"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name, port", STARTERS.items())
def test_a_server_is_started_with_few_rights_and_the_checkpoint_at_the_originals_place(start, checkpoint, name, port):
    code, out, _, asked = start(name, "-c", checkpoint)
    run = asked[-1]
    assert code == 0 and f"http://localhost:{port}" in out and "docker rm -f qwen" in out
    assert run[:3] == ["run", "--name", "qwen"] and f"127.0.0.1:{port}:8000" in run
    for option in ("--read-only", "--detach", "no-new-privileges", "ALL", "qwen-cache:/cache",
                   f"type=bind,source={checkpoint},target=/data/shared/Qwen/Qwen-Chat,readonly"):
        assert option in run, option
    assert run[run.index("qwen-mindspore"):] == ["qwen-mindspore", "serve", "--host", "0.0.0.0", "--port", "8000",
                                                 "--model", "/data/shared/Qwen/Qwen-Chat"]
    assert not any("docker.sock" in argument or argument == "--privileged" for argument in run)


@pytest.mark.parametrize("name", STARTERS)
@pytest.mark.parametrize("options", [("-i", "me/qwen:1", "-n", "mine", "--port", "1234"),
                                     ("--image-name", "me/qwen:1", "--container-name", "mine", "--port", "1234")])
def test_the_originals_options(start, checkpoint, name, options):
    code, out, _, asked = start(name, *options, "--checkpoint", checkpoint, images="")
    assert code == 0 and asked[0] == ["image", "inspect", "me/qwen:1"] and asked[1] == ["pull", "me/qwen:1"]
    assert {"mine", "127.0.0.1:1234:8000", "me/qwen:1"} <= set(asked[-1]) and "http://localhost:1234" in out


def test_what_follows_goes_to_the_server_and_a_key_never_through_the_command_line(start, checkpoint):
    _, _, _, asked = start("openai_api", "-c", checkpoint, "--address", "0.0.0.0", "--", "--max_batch", "4", "-x y",
                           QWEN_API_KEY="secret", QWEN_NUM_THREADS="2")
    run = asked[-1]
    assert run[-3:] == ["--max_batch", "4", "-x y"] and "0.0.0.0:8000:8000" in run
    assert [run[place + 1] for place, word in enumerate(run) if word == "--env"] == ["QWEN_API_KEY", "QWEN_NUM_THREADS"]
    assert "secret" not in "".join(run)


def test_a_chat_in_the_terminal_goes_with_its_container(start, checkpoint):
    code, _, _, asked = start("cli_demo", "-c", checkpoint, "-n", "talk", "--", "--seed", "7")
    run = asked[-1]
    assert code == 0 and {"--rm", "--interactive", "--no-healthcheck", "--read-only"} <= set(run) and "--tty" not in run
    arguments = run[run.index("qwen-mindspore") + 1:]
    assert arguments == ["chat", "--model", "/data/shared/Qwen/Qwen-Chat", "--seed", "7"]
    assert chat.parse_args(arguments[1:]).seed == 7


def test_an_image_that_is_not_there_is_built(start, checkpoint):
    _, _, _, asked = start("openai_api", "-c", checkpoint, images="")
    assert asked[1] == ["build", "--tag", "qwen-mindspore", "--file", f"{FOLDER}/Dockerfile", str(ROOT)]
    code, out, err, _ = start("openai_api", "-c", checkpoint, images="", FAILS="build")
    assert code == 1 and out == "" and "image qwen-mindspore: it could not be built" in err
    code, out, err, _ = start("openai_api", "-c", checkpoint, FAILS="run")
    assert code == 1 and out == "" and "container qwen: not started" in err
    code, _, err, _ = start("openai_api", "-c", checkpoint, "-i", "no/such", FAILS="pull")
    assert code == 1 and "image no/such: neither here nor to be pulled" in err


def test_an_npu_that_is_there_is_handed_over(start, checkpoint, tmp_path):
    devices = tmp_path / "npu"
    devices.mkdir()
    (devices / "davinci_manager").touch()
    code, _, _, asked = start("openai_api", "-c", checkpoint, images="qwen-mindspore-ascend", devices=devices, NPU="3")
    run = asked[-1]
    given = [run[place + 1] for place, word in enumerate(run) if word == "--device"]
    assert code == 0 and given == [f"{devices}/{name}" for name in ("davinci3", "davinci_manager", "devmm_svm",
                                                                    "hisi_hdc")]
    assert "qwen-mindspore-ascend" in run and "--group-add" in run
    code, _, err, _ = start("openai_api", "-c", checkpoint, images="", devices=devices)
    assert code == 1 and "image qwen-mindspore-ascend: build it on your CANN image, see docs/docker.md" in err


@pytest.mark.parametrize("arguments, said", [
    ([], "-c: the folder of a checkpoint is needed"), (["-c"], "-c: expected a value behind it"),
    (["-c", "nowhere"], "-c nowhere: no such folder"), (["-c", "."], "-c .: config.json is not in it"),
    (["--ports", "1"], "unknown argument --ports"),
    (["-c", "Qwen Chat", "--port", "http"], "--port http: expected 1 to 65535"),
    (["-c", "Qwen Chat", "--port", "65536"], "--port 65536: expected 1 to 65535")])
def test_a_mistake_is_told_before_docker_is_asked(start, checkpoint, arguments, said):
    code, out, err, asked = start("openai_api", *arguments)
    assert code == 1 and out == "" and f"docker_openai_api.sh: {said}" in err and asked == []


def test_help_is_help_and_a_chat_has_no_port(start, checkpoint):
    for name in (*STARTERS, "cli_demo"):
        code, out, err, asked = start(name, "--help")
        assert code == 0 and out.startswith(f"Usage: bash docker/docker_{name}.sh [-i IMAGE_NAME] -c ") and asked == []
    code, _, err, _ = start("cli_demo", "-c", checkpoint, "--port", "1")
    assert code == 1 and "unknown argument --port" in err
