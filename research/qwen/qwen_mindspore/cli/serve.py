"""
Answer over HTTP, by OpenAI's interface: `python scripts/serve.py --config Y --load_checkpoint C`.

Listens at once and loads the model beside that; the page at / talks to it. SIGTERM lets what is begun end first.
"""
import argparse
import logging
import os
import sys
import threading

from qwen_mindspore.cli.command import run_command
from qwen_mindspore.cli.options import (
    add_common_options,
    add_generation_options,
    config_of,
    generation_options,
    positive_int,
    ray_resources,
    settle_model,
    utf8,
)
from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import decode_text, split_lines
from qwen_mindspore.common.folders import provide_folders
from qwen_mindspore.server.address import bind, check_certificate, is_loopback

NAME = "serve"
KEY_VARIABLE = "QWEN_API_KEY"
WEB = ("fastapi", "uvicorn", "pydantic", "prometheus_client")  # of the extra `server`


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_common_options(parser, "predict_qwen_7b_chat.yaml")
    _add_address_options(parser)
    _add_access_options(parser)
    _add_load_options(parser)
    _add_replica_options(parser)
    _add_answer_options(parser)
    add_generation_options(parser)
    _add_original_options(parser)
    return parser.parse_args(argv)


def _add_address_options(parser):
    group = parser.add_argument_group("address")
    group.add_argument("--host", "--server-name", default="127.0.0.1", metavar="HOST",
                       help="default: 127.0.0.1, which only this machine reaches; 0.0.0.0: every address of it")
    group.add_argument("--port", "--server-port", type=_count, default=8000, metavar="N",
                       help="default: 8000; 0: any that is free, the log says which")
    group.add_argument("--ssl_certfile", metavar="FILE", help="a certificate in PEM: HTTPS")
    group.add_argument("--ssl_keyfile", metavar="FILE", help="its key")
    group.add_argument("--root_path", default="", metavar="PATH", help="the path under which a proxy shows the server")
    group.add_argument("--served_model_name", type=utf8, metavar="NAME",
                       help="what clients call the model; default: --model, or the checkpoint's name")


def _add_access_options(parser):
    group = parser.add_argument_group("access", "without any of these keys, whoever reaches the server may ask")
    group.add_argument("--api_key", nargs="+", action="extend", default=[], metavar="KEY",
                       help="a key that clients must have, as Authorization: Bearer KEY or X-Api-Key: KEY; several may "
                            "be given. Other users of this machine see it: better in a file, or in the environment's "
                            f"{KEY_VARIABLE}")
    group.add_argument("--api_key_file", metavar="FILE", help="a key a line; a line that begins with # is none")
    group.add_argument("--api-auth", "--api_auth", dest="api_auth", metavar="USER:PASS", help="HTTP's Basic instead, "
                                                                                              "or as well")
    group.add_argument("--cors_origins", nargs="+", default=["localhost"], metavar="ORIGIN",
                       help="whose pages may ask from a browser: https://HOST[:PORT], localhost (on any port; the "
                            "default), or *")
    group.add_argument("--log_prompts", action="store_true", help="what is asked goes to the log, too; default: never")


def _add_load_options(parser):
    group = parser.add_argument_group("load")
    group.add_argument("--max_batch", dest="batch_size", type=positive_int, default=16, metavar="N",
                       help="answers that are computed at once; default: 16")
    group.add_argument("--cache_tokens", type=positive_int, metavar="N",
                       help="tokens that the key/value cache holds, of all answers at once; default: 1024 an answer, "
                            "and at least seq_length")
    group.add_argument("--max_queued", type=_count, metavar="N",
                       help="answers that may wait beside those; others get 429; default: 256")
    group.add_argument("--max_queued_tokens", type=_count, metavar="N",
                       help="tokens of all prompts that may wait; default: 0, any number")
    group.add_argument("--max_body", type=positive_int, metavar="BYTES", help="of a request; default: 4194304")
    group.add_argument("--max_n", type=positive_int, metavar="N", help="answers of one request; default: 128")
    group.add_argument("--drain_seconds", type=_seconds, default=30.0, metavar="T",
                       help="SIGTERM lets answers end for so long; a second one doesn't; default: 30")
    group.add_argument("--keep_alive_seconds", type=_seconds, metavar="T",
                       help="a stream that is silent for so long gets a comment; default: 15; 0: never")


def _add_replica_options(parser):
    group = parser.add_argument_group("replicas")
    group.add_argument("--replicas", type=positive_int, metavar="N",
                       help="so many engines behind this address, by Ray Serve; each has the limits of above")
    group.add_argument("--ray", metavar="ADDRESS", default="local",
                       help="where they are: auto: the Ray cluster that this machine belongs to; local, the default: "
                            "this machine alone")
    group.add_argument("--ray_resources", type=ray_resources, metavar="NAME=N,...",
                       help="what each takes; default: NPU=1 on Ascend, on the CPU its share of a machine's CPUs")


def _add_answer_options(parser):
    group = parser.add_argument_group("tools")
    group.add_argument("--react_placement", choices=["qwen", "last_query"], default="qwen",
                       help="where the instruction with the tools stands: as Qwen's own server has it, or always "
                            "before the last question, which lets the prefix cache serve more; default: qwen")
    group.add_argument("--tool_grammar", choices=["on", "off"], default="on",
                       help="hold calls to the tools' names and schemas while they are written; default: on")
    group.add_argument("--thought", choices=["reasoning", "content"], default="reasoning",
                       help="where the thought before a call goes: reasoning_content, or content as in Qwen's own "
                            "server; default: reasoning")


def _add_original_options(parser):
    group = parser.add_argument_group("as Qwen's openai_api.py has them")
    group.add_argument("-c", "--checkpoint-path", dest="checkpoint_path", metavar="MODEL", help="the same as --model")
    group.add_argument("--cpu-only", dest="cpu_only", action="store_true", help="the same as --device_target CPU")
    group.add_argument("--disable-gc", dest="disable_gc", action="store_true",
                       help="without effect: memory is not collected after each answer here")


def _count(text):
    """A command line's whole number from 0, for argparse."""
    if not text.isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"expected a number from 0, found {text}")
    return int(text)


def _seconds(text):
    """A command line's seconds, for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e6:
        raise argparse.ArgumentTypeError(f"expected seconds, found {text}")
    return seconds


def settle_original(args):
    """
    Put what the original server's options say where ours have theirs.

    Raises:
        ValueError: They say something else than ours.
    """
    if args.checkpoint_path is not None:
        if args.model is not None or args.load_checkpoint:
            raise ValueError("--checkpoint-path: it is the same as --model: leave one of it, --model and "
                             "--load_checkpoint")
        args.model = args.checkpoint_path
    if args.cpu_only:
        if args.device_target == "Ascend":
            raise ValueError("--cpu-only and --device_target Ascend: leave one of them")
        args.device_target = "CPU"


def keys_of(args):
    """
    The keys of the command line, of its file and of the environment.

    Returns:
        list[str].

    Raises:
        ValueError, OSError: A key that can't be sent as one, or a file without any: the server would be open to
            everybody.
    """
    keys = list(args.api_key)
    if os.environ.get(KEY_VARIABLE):
        keys.append(os.environ[KEY_VARIABLE])
    if args.api_key_file:
        with open(args.api_key_file, "rb") as file:
            lines = [line.strip() for line in split_lines(decode_text(file.read(), args.api_key_file))]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ValueError(f"--api_key_file {args.api_key_file}: expected a key on each line, found none")
        keys += found
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError("an API key: expected printable ASCII without blanks, found something else")
    return keys


def users_of(args):
    """list[str], the USER:PASSWORD of --api-auth; ValueError where it is none."""
    if args.api_auth is None:
        return []
    user, colon, password = args.api_auth.partition(":")
    if not (user and colon and password):
        raise ValueError("--api-auth: expected USER:PASSWORD")
    return [args.api_auth]


def limits_of(args):
    """The Limits of the command line."""
    from qwen_mindspore.server.service import Limits

    given = {name: getattr(args, name) for name in ("max_queued", "max_queued_tokens", "max_body", "max_n")}
    given["ping_seconds"] = args.keep_alive_seconds
    return Limits(**{name: value for name, value in given.items() if value is not None})


def name_of(args, checkpoint):
    """str, what clients call the model."""
    from pathlib import Path

    if args.served_model_name:
        return args.served_model_name
    if args.model:
        return args.model if not Path(args.model).exists() else Path(args.model).resolve().name
    path = Path(checkpoint).resolve()
    return path.stem if path.is_file() else path.name


def build_grammars(tokenizer, vocab_size):
    """
    What holds answers to a form, while a thread makes it ready; None, with a warning, where its package is missing:
    requests that need it are refused then.
    """
    from qwen_mindspore.generate.grammar import Grammars
    from qwen_mindspore.server.logs import log

    try:
        import_extra("llguidance", "server", "a form of answers (response_format, tool_choice)")
    except ValueError as error:
        log(str(error), logging.WARNING)
        return None
    grammars = Grammars(tokenizer, vocab_size, [tokenizer.im_end_id, tokenizer.eod_id])
    threading.Thread(target=grammars.prepare, name="grammars", daemon=True).start()
    return grammars


def build_service(args, config):
    """
    The Service of a command line, without its engine, and what builds that.

    Returns:
        (Service, function): the function loads the model and returns Answers that have warmed up.

    Raises:
        ValueError, OSError: What the command line or the YAML names is not there, or can't be.
    """
    import time

    from qwen_mindspore.generate.answers import Answers
    from qwen_mindspore.generate.build import build_config, build_model, build_tokenizer, set_context, size_model
    from qwen_mindspore.generate.engine import Engine
    from qwen_mindspore.generate.settings import GenerationSettings
    from qwen_mindspore.model.config import QwenConfig
    from qwen_mindspore.server.lifecycle import warm_up
    from qwen_mindspore.server.metrics import Metrics
    from qwen_mindspore.server.service import Service

    size_model(args, config)
    model_config = build_config(config)
    settings = GenerationSettings.load(model_config, **generation_options(args))
    tokenizer = build_tokenizer(config)
    set_context(config)
    name = name_of(args, config.model.model_config.checkpoint_name_or_path)
    service = Service(name, tokenizer, QwenConfig.from_llama_config(model_config), settings,
                      settings.chat_format == "chatml", limits=limits_of(args), metrics=Metrics(name),
                      created=int(time.time()), thought=args.thought, placement=args.react_placement,
                      tool_grammar=args.tool_grammar == "on")

    def load():
        service.grammars = build_grammars(tokenizer, model_config.vocab_size)
        engine = Engine(build_model(config), max_batch=args.batch_size)
        service.config = engine.config
        answers = Answers(engine, tokenizer)
        warm_up(answers, settings)
        return answers

    return service, load


def build_replica(args, number):
    """
    What `build_service` returns, for one of several replicas, in its own process.

    Args:
        args (argparse.Namespace): The command line.
        number (int): Of the replica: where Ray gives out no NPUs, those from --device_id on are theirs in turn.
    """
    import ray

    given = ray.get_runtime_context().get_accelerator_ids().get("NPU")
    args.device_id = 0 if given else (args.device_id or 0) + number  # Ray shows a process its own NPUs alone
    provide_folders()
    return build_service(args, config_of(args))


def build_fleet(args, config, listener):
    """
    The Service of the front, and what starts the replicas; see `build_service`, whose errors it finds, too, as far as
    that takes no model.
    """
    import socket
    import time

    from qwen_mindspore.generate.build import build_config, size_model
    from qwen_mindspore.generate.settings import GenerationSettings
    from qwen_mindspore.server.metrics import FleetMetrics
    from qwen_mindspore.server.replicas import Fleet, Replicas

    size_model(args, config)
    GenerationSettings.load(build_config(config), **generation_options(args))
    name = name_of(args, config.model.model_config.checkpoint_name_or_path)
    # Replicas that another machine builds at another time call themselves what this one does.
    args.served_model_name = name
    fleet = Fleet(name, limits=limits_of(args), metrics=FleetMetrics(name), created=int(time.time()),
                  replicas=args.replicas)
    replicas = Replicas(f"qwen-{socket.gethostname()}-{listener.getsockname()[1]}", build_replica, (args,),
                        args.replicas, args.batch_size, args.ray, args.ray_resources, config.context.device_target,
                        args.verbose)
    return fleet, replicas.start


def serve(args):
    """
    Serve till a signal.

    Returns:
        int, the exit code.

    Raises:
        ValueError, OSError: It can't be done.
    """
    for package in WEB:
        import_extra(package, "server", "a server")
    from qwen_mindspore.server.middleware import cors_options as check_origins

    settle_original(args)
    keys, users = keys_of(args), users_of(args)
    check_certificate(args.ssl_certfile, args.ssl_keyfile)
    check_origins(args.cors_origins)
    with bind(args.host, args.port) as listener:
        settle_model(args)
        return _serve(args, config_of(args), keys, users, listener)  # imports MindFormers, which takes seconds


def _serve(args, config, keys, users, listener):
    import uvicorn

    from qwen_mindspore.server import lifecycle
    from qwen_mindspore.server.app import create_app
    from qwen_mindspore.server.logs import log, set_up_logs

    args.has_begun = True
    if args.replicas:
        from qwen_mindspore.server.replicas import FleetServer as Server

        service, load = build_fleet(args, config, listener)
    else:
        from qwen_mindspore.server.lifecycle import Server

        service, load = build_service(args, config)
    app = create_app(service, keys, users, args.cors_origins, args.log_prompts, args.root_path)
    set_up_logs()
    if not keys and not users and not is_loopback(args.host):
        log(f"whoever reaches {args.host} may ask: no --api_key is set", logging.WARNING)
    settings = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none",
                              ssl_certfile=args.ssl_certfile, ssl_keyfile=args.ssl_keyfile,
                              timeout_keep_alive=lifecycle.IDLE_SECONDS,
                              timeout_graceful_shutdown=lifecycle.LAST_WORDS)
    server = Server(settings, service, load, app.state.activity, args.drain_seconds)
    return lifecycle.serve(server, [listener])


def leave(code, args):
    """
    End the process without more ado, where a thread is still in the middle of a computation: Python, when it ends,
    would pull the ground from under its feet. Threads of Ray Serve never end.

    Args:
        code (int): The exit code, which is returned where nothing was begun, or all has ended.
        args (argparse.Namespace): Of the command, with `has_begun` where it came so far.
    """
    is_busy = args.replicas or any(thread.name in ("load", "engine", "grammars") for thread in threading.enumerate())
    if getattr(args, "has_begun", False) and is_busy:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)
    return leave(run_command(NAME, lambda _: serve(args), args.verbose), args)
