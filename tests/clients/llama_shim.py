"""
`llama-server` with our server behind it: its options become ours, and its unprefixed paths /v1.

Its tests start a server each. Ours takes seconds to load, so one is kept for the next test with the same options
($QWEN_POOL), and this process hands connections on to it.
"""
import argparse
import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from clients.run import CHECKPOINT, DEMO, ROOT, environment, free_port

KEPT = 2  # servers at once: each holds a model
ALIASES = (b"/completions", b"/chat/completions", b"/chat/completions/input_tokens", b"/models", b"/embeddings")


def options_of(argv):
    """(port, our options) of theirs; what has no counterpart is left out, and the list of deviations says so."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("port", "ctx-size", "parallel", "n-predict"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("temp", "seed", "alias", "api-key", "cors-origins", "host"):
        parser.add_argument(f"--{name}")
    args, _ = parser.parse_known_args(argv)
    alias = (args.alias or "tinyllama-2").split(",")[0]
    options = ["--served_model_name", alias, "--temperature", args.temp or "0.8", "--seed", args.seed or "42",
               "--max_new_tokens", str(args.n_predict or 64), "--max_batch", str(args.parallel or 2),
               "--do_sample", "True"]
    if args.api_key:
        options += ["--api_key", args.api_key]
    if args.cors_origins:
        options += ["--cors_origins", args.cors_origins]
    return args.port, options, (args.ctx_size or 512) // (args.parallel or 2)


def backend(options, context):
    """int, the port of a server with these options: one that runs already, or a new one."""
    pool = Path(os.environ["QWEN_POOL"])
    pool.mkdir(exist_ok=True)
    key = hashlib.sha256(json.dumps([options, context]).encode()).hexdigest()[:16]
    with open(pool / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        entry = pool / f"{key}.json"
        if entry.exists():
            entry.touch()
            return json.loads(entry.read_text())["port"]
        _make_room(pool)
        port = free_port()
        config = pool / f"{key}.yaml"
        config.write_text(json.dumps({"base_config": [str(DEMO)], "model": {"model_config": {"seq_length": context}}}))
        with open(pool / f"{key}.log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "serve.py"), "--config", str(config), "--load_checkpoint",
                 str(CHECKPOINT), "--port", str(port), *options], stdout=log, stderr=log, start_new_session=True,
                env=environment(PYTHONPATH=os.environ["PROJECT_PATH"]), cwd=pool)
        (pool / f"{process.pid}.pid").touch()
        _wait(process, port)
        entry.write_text(json.dumps({"port": port, "pid": process.pid, "options": options}))
        return port


def _make_room(pool):
    """End the servers that were not asked for the longest time."""
    entries = sorted(pool.glob("*.json"), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[KEPT - 1:]:
        pid = json.loads(entry.read_text())["pid"]
        entry.unlink()
        (pool / f"{pid}.pid").unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _wait(process, port):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.2)
    raise SystemExit("the server has ended")


async def hand_on(reader, writer, port):
    """A connection, with the path of its first request as ours; the tests make a request a connection."""
    line = await reader.readline()
    method, _, rest = line.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if path in ALIASES:
        line = method + b" /v1" + rest
    theirs, ours = await asyncio.open_connection("127.0.0.1", port)
    ours.write(line)
    await asyncio.gather(_copy(reader, ours), _copy(theirs, writer))


async def _copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def serve(port, behind):
    """Hand connections on till a signal."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    server = await asyncio.start_server(lambda reader, writer: hand_on(reader, writer, behind), "127.0.0.1", port)
    async with server:
        await over.wait()
        server.close()


def main():
    """The command."""
    port, options, context = options_of(sys.argv[1:])
    behind = backend(options, context)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(serve(port, behind))
    os._exit(0)  # connections that are still open are the tests' own


if __name__ == "__main__":
    main()
