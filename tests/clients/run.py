"""
Let other people's clients, and their suites, judge the server: `bash scripts/test_clients.sh [JUDGE ...]`.

Each judge runs in an environment of its own (.venv-clients/ENV, pinned in requirements-ENV.txt) against a server that
is started here on loopback: that of scripts/serve.py with the demo model, or one that plays a script. What fails must
stand in deviations.yaml with its reason, and what stands there must fail.
"""
import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".venv-clients"
CHECKPOINT = Path(os.environ.get("CHECKPOINT") or
                  Path.home() / ".cache/qwen-mindspore/models/smollm2-135m-qwen-ms")
DEMO = ROOT / "configs" / "predict_qwen_demo.yaml"
NAME = "qwen-demo"
START = 300  # seconds that a server may take till it is ready


class Judge(NamedTuple):
    """
    Attributes:
        environment (str): See requirements-*.txt.
        server (str): "demo", "scripted", or "": the suite starts its own through a shim.
        tests (tuple[str]): Files beside this one; or, of a suite, in its folder.
        suite (str): "NAME==VERSION of a source package, its folder": brought by pip at run time.
        prefix (str): What is cut off the names of its tests.
    """

    environment: str
    server: str
    tests: tuple[str, ...]
    suite: tuple[str, str] = ()
    prefix: str = ""


JUDGES = {
    "openai": Judge("openai", "demo", ("check_openai.py",)),
    "openai-tools": Judge("openai", "scripted", ("check_openai_tools.py",)),
    "openai-contract": Judge("openai", "scripted", (
        "tests/api_resources/chat/test_completions.py", "tests/api_resources/test_completions.py",
        "tests/api_resources/test_models.py"), ("openai==3.57.0", "."), "tests.api_resources."),
    "openai028": Judge("openai028", "scripted", ("check_openai028.py",)),
    "langchain": Judge("langchain", "scripted", ("check_langchain.py",)),
    "qwen-agent": Judge("qwen-agent", "scripted", ("check_qwen_agent.py",)),
    "lm-eval": Judge("lm-eval", "demo", ("check_lm_eval.py",)),
    "schemathesis": Judge("schemathesis", "scripted", ("check_schemathesis.py",)),
    "llama.cpp": Judge("llamacpp", "", (
        "unit/test_basic.py", "unit/test_chat_completion.py", "unit/test_completion.py", "unit/test_ctx_shift.py",
        "unit/test_security.py", "unit/test_tokenize.py", "unit/test_tool_call.py"),
        ("llama-cpp-python==0.3.36", "vendor/llama.cpp/tools/server/tests"), "unit."),
}


def main(argv=None):
    """Run judges. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("judges", nargs="*", metavar="JUDGE", help=f"default: all of {', '.join(JUDGES)}")
    parser.add_argument("--environments", action="store_true", help="print the environments that these need")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and reports there")
    parser.add_argument("-k", dest="filter", metavar="EXPRESSION", help="pytest's: only some tests; none is missed")
    args = parser.parse_args(argv)
    unknown = [name for name in args.judges if name not in JUDGES]
    if unknown:
        parser.error(f"no such judge {unknown[0]}, expected {', '.join(JUDGES)}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # servers and suites end with this process
    chosen = {name: JUDGES[name] for name in args.judges or JUDGES}
    if args.environments:
        print("\n".join(dict.fromkeys(judge.environment for judge in chosen.values())))
        return 0
    deviations = yaml.safe_load((HERE / "deviations.yaml").read_text(encoding="utf-8"))
    totals = Counter()
    with _folder(args.keep) as folder, contextlib.ExitStack() as servers:
        urls = {}
        for name, judge in chosen.items():
            if judge.server and judge.server not in urls:
                urls[judge.server] = servers.enter_context(serving(judge.server, folder))
            say(f"{name} ...")
            listed = deviations.get(name) or {}
            outcomes = run(name, judge, urls.get(judge.server, ""), folder, args.filter, listed)
            totals += judged(name, outcomes, listed, bool(args.filter))
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 1 if totals["failed"] or not totals["passed"] else 0


def say(text):
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _folder(keep):
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="clients-") as folder:
            yield Path(folder)
    else:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()


# Servers

def free_port():
    """int, a port of loopback that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def environment(**others):
    """dict, this process's environment without proxies: everything is on loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**kept, "NO_PROXY": "*", "no_proxy": "*", **others}


def project_path():
    """str, PYTHONPATH of the servers: what this process has, and the tests' helpers."""
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(HERE.parent))))


def command_of(kind, port, *options):
    """list[str], what starts a server."""
    if kind == "scripted":
        return [sys.executable, str(HERE / "scripted_server.py"), "--port", str(port)]
    return [sys.executable, str(ROOT / "scripts" / "serve.py"), "--config", str(DEMO), "--load_checkpoint",
            str(CHECKPOINT), "--served_model_name", NAME, "--port", str(port), *options]


@contextlib.contextmanager
def serving(kind, folder, *options):
    """The address of a server that ends with the block."""
    port = free_port()
    log = folder / f"server-{kind}-{port}.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command_of(kind, port, *options), stdout=file, stderr=file,
                                   env=environment(PYTHONPATH=project_path()),
                                   start_new_session=True)
    try:
        wait_until_ready(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(process, port, log):
    """Till /ready says so; SystemExit where the server has ended or takes too long."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"the server is not ready:\n{log.read_text(errors='replace')[-4000:]}")


# Suites

def fetched(suite, folder):
    """Path, the folder of a suite in a source package that pip brings. It is not kept."""
    package, inner = suite
    archives = folder / "archives"
    python = ENVIRONMENTS / "openai" / "bin" / "python"
    say(f"{package}: its tests are brought ...")
    subprocess.run([str(python if python.exists() else sys.executable), "-m", "pip", "download", "--quiet", "--no-deps",
                    "--no-binary", ":all:", "--dest", str(archives), package], check=True)
    name, _, version = package.partition("==")
    archive = archives / f"{name.replace('-', '_')}-{version}.tar.gz"
    shutil.unpack_archive(archive, folder / "suites", filter="data")
    return folder / "suites" / archive.name.removesuffix(".tar.gz") / inner


def check_files(name, judge, place, listed):
    """SystemExit where a suite has a file that is neither run nor left out with a reason, or has one no more."""
    known = {entry["file"] for entry in listed.get("left_out", ()) if "file" in entry} | set(judge.tests)
    folders = {(place / test).parent for test in judge.tests}
    there = {path.relative_to(place).as_posix() for one in folders for path in one.glob("test_*.py")}
    if listed.get("left_out") and known != there:
        raise SystemExit(f"{name}: deviations.yaml and the suite differ in {', '.join(sorted(known ^ there))}")


def run(name, judge, url, folder, expression, listed):
    """
    Run a judge.

    Args:
        name (str), judge (Judge): Which.
        url (str): Of the server.
        folder (Path): For logs and reports.
        expression (str | None): pytest's -k.
        listed (dict): Of the judge in deviations.yaml.

    Returns:
        dict, test -> "passed", "failed" or "skipped".
    """
    report = folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    place, settings = HERE, {"QWEN_URL": url, "QWEN_MODEL": NAME, "QWEN_FOLDER": str(folder), "QWEN_PYTHON":
                             sys.executable, "QWEN_CHECKPOINT": str(CHECKPOINT), "QWEN_CONFIG": str(DEMO)}
    options = ["-c", os.devnull, "--rootdir", str(HERE), "--confcutdir", str(HERE), "-p", "no:cacheprovider"]
    if judge.environment == "langchain":
        # A client is kept between tests, and so must be its event loop.
        options += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session", "-o",
                    "asyncio_default_fixture_loop_scope=session"]
    if judge.suite:
        place = fetched(judge.suite, folder)
        check_files(name, judge, place, listed)
        options = ["-p", "no:cacheprovider"]
        if name == "llama.cpp":
            settings |= _adapt_llama(place, folder, listed["constants"])
            options += ["-p", "llama_plugin", "-m", "not slow"]
            options += [f"--deselect={entry['test']}" for entry in listed["left_out"] if "test" in entry]
        else:
            settings |= {"TEST_API_BASE_URL": f"{url}/v1"}
            options += ["-n", "0", "-o", "addopts="]
    python = ENVIRONMENTS / judge.environment / "bin" / "python"
    # PYTHONPATH of the project would bring its packages in.
    settings["PYTHONPATH"] = str(HERE) if name == "llama.cpp" else ""
    settings["PROJECT_PATH"] = project_path()
    command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *options,
               *(["-k", expression] if expression else []), *judge.tests]
    try:
        with open(folder / f"{name}.log", "wb") as log:
            subprocess.run(command, cwd=place, env=environment(**settings), stdout=log, stderr=subprocess.STDOUT)
    finally:
        for path in Path(settings.get("QWEN_POOL", os.devnull)).glob("*.pid"):  # the servers of llama_shim.py
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.stem), signal.SIGTERM)
            path.unlink()
    if not report.exists():
        raise SystemExit(f"{name}: pytest has not run:\n{(folder / f'{name}.log').read_text(errors='replace')[-3000:]}")
    return {test.removeprefix(judge.prefix): outcome for test, outcome in outcomes_of(report)}


def _adapt_llama(place, folder, changes):
    """
    What the suite's other model says, and its version, are not ours: such constants are taken out of the tests.

    Returns:
        dict, the environment that its tests need.
    """
    for path in (place / "utils.py", *place.glob("unit/*.py")):
        text = path.read_text(encoding="utf-8")
        for change in changes:
            text = text.replace(change["from"], change["to"])
        path.write_text(text, encoding="utf-8")
    return {"LLAMA_SERVER_BIN_PATH": str(HERE / "llama_server.sh"), "QWEN_POOL": str(folder / "pool"),
            "PORT": str(free_port())}


def outcomes_of(report):
    """(test, outcome) of each test in a JUnit report; tests of one name are counted."""
    seen = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        seen[name] += 1
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        yield name if seen[name] == 1 else f"{name} #{seen[name]}", outcome


# The verdict

def judged(name, outcomes, listed, is_partial=False):
    """
    Compare outcomes with the deviations that are listed, and tell.

    Args:
        outcomes (dict): Test -> outcome.
        listed (dict): Of the judge in deviations.yaml: `deviations`, each with `test` (a name; * stands for anything)
            and `reason`.
        is_partial (bool): Not all tests were run: what is listed and wasn't run is no error.

    Returns:
        Counter of "passed", "failed", "skipped": an expected failure counts as passed.
    """
    expected, problems, counts = {}, [], Counter()
    for entry in listed.get("deviations") or []:
        pattern = re.compile(re.escape(entry["test"]).replace(r"\*", ".*"))
        found = [test for test in outcomes if pattern.fullmatch(test)]
        if not found and not is_partial:
            problems.append(f"{entry['test']}: is listed, but there is no such test")
        expected |= dict.fromkeys(found, entry["reason"])
    deviated = 0
    for test, outcome in outcomes.items():
        if outcome == "failed" and test in expected:
            outcome, deviated = "passed", deviated + 1
        elif outcome == "failed":
            problems.append(f"{test}: failed")
        elif outcome == "passed" and test in expected:
            problems.append(f"{test}: passed, but is listed as a deviation: {expected[test]}")
            outcome = "failed"
        counts[outcome] += 1
    counts["failed"] += sum("no such test" in problem for problem in problems)
    for problem in problems:
        print(f"{name}: {problem}")
    print(f"{name}: {counts['passed'] - deviated} as expected, {deviated} deviations that are listed, "
          f"{counts['skipped']} skipped, {counts['failed']} not as expected", flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
