"""
Answer prompts with a Qwen of any size: `python run_qwen_7b.py --config Y --load_checkpoint C --predict_data TEXT`.

Standard output carries the answers and nothing else; logs go to standard error.
"""
import argparse
import contextlib
import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--config", default=str(CONFIGS / "predict_qwen_7b.yaml"), help="a YAML, see configs/")
    parser.add_argument("--run_mode", default="predict", choices=["predict"])
    parser.add_argument("--task", default="text_generation", choices=["text_generation"])
    parser.add_argument("--load_checkpoint", default="",
                        help="a .ckpt or .safetensors file, or a folder of them; default: what the YAML says")
    parser.add_argument("--predict_data", nargs="+", required=True, metavar="TEXT",
                        help="prompts, or @FILE for a file with one prompt a line")
    parser.add_argument("--predict_length", type=int, metavar="N",
                        help="the most tokens of a prompt and its answer together; default: the YAML's "
                             "max_decode_length")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="the most tokens of an answer")
    parser.add_argument("--device_target", default=None, choices=["auto", "CPU", "Ascend"],
                        help="auto: an NPU if there is one; default: what the YAML says")
    parser.add_argument("--device_id", type=int, default=None)
    parser.add_argument("--use_parallel", type=_bool, default=False, metavar="BOOL")
    parser.add_argument("--verbose", action="store_true", help="MindFormers' whole log on standard error")
    args = parser.parse_args(argv)
    if args.use_parallel:
        parser.error("--use_parallel: this version predicts on one device")
    for option in ("predict_length", "max_new_tokens"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option}: expected a positive number, found {value}")
    return args


def read_prompts(arguments):
    """
    The prompts of `--predict_data`: each argument is one, `@FILE` stands for the lines of a UTF-8 file.

    Raises:
        ValueError: A prompt is empty, or there is none.
        OSError: The file can't be read.
    """
    prompts = []
    for argument in arguments:
        if argument.startswith("@"):
            prompts += Path(argument[1:]).read_text(encoding="utf-8").splitlines()
        else:
            prompts.append(argument)
    if not prompts:
        raise ValueError("--predict_data: no prompt found")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise ValueError(f"--predict_data: prompt {number} is empty")
    return prompts


def load_config(args):
    """
    The YAML with the command line's settings in it.

    Returns:
        MindFormerConfig, whose checkpoint and `context.device_target` are settled.

    Raises:
        FileNotFoundError, ValueError: No such YAML or checkpoint, or none named.
    """
    from mindformers.tools.register.config import MindFormerConfig

    from qwen_checkpoint import checkpoint_files
    if not Path(args.config).is_file():
        raise FileNotFoundError(f"--config {args.config}: no such file; the shipped ones are in {CONFIGS}")
    config = MindFormerConfig(args.config)
    model_config = config.model.model_config
    checkpoint = args.load_checkpoint or config.load_checkpoint or model_config.checkpoint_name_or_path
    if not checkpoint:
        raise ValueError(f"no checkpoint: give --load_checkpoint, or load_checkpoint in {args.config}")
    checkpoint_files(checkpoint)
    # The model loads it, not the Trainer, which would answer with random numbers where a weight is missing.
    model_config.checkpoint_name_or_path = str(checkpoint)
    config.load_checkpoint = ""
    config.context.device_target = resolve_device(args.device_target or config.context.device_target)
    if args.device_id is not None:
        config.context.device_id = args.device_id
    config.save_file = str(Path(config.output_dir or "./output") / "text_generation_result.txt")
    return config


def resolve_device(target):
    """
    "CPU" or "Ascend"; "auto" is Ascend where MindSpore finds an NPU.

    Raises:
        ValueError: Ascend on a machine without one.
    """
    import mindspore as ms
    from mindspore import hal
    has_npu = hal.is_available("Ascend")
    if target == "auto":
        return "Ascend" if has_npu else "CPU"
    if target == "Ascend" and not has_npu:
        raise ValueError(f"device_target Ascend: MindSpore {ms.__version__} finds no NPU here; --device_target CPU or "
                         "auto runs on the CPU")
    return target


def build_tokenizer(config):
    """
    The YAML's tokenizer, with a vocabulary from where the YAML says, else from beside the checkpoint, else the
    official one; it wraps questions in ChatML where `chat_format` is chatml.
    """
    from qwen_chat import ChatMLTokenizer
    from qwen_tokenizer import QwenTokenizer, find_vocab_file
    settings = dict(config.processor.tokenizer)
    model_config = config.model.model_config
    settings["vocab_file"] = find_vocab_file(settings.get("vocab_file"), beside=model_config.checkpoint_name_or_path)
    is_chat = model_config.chat_format == "chatml"
    return ChatMLTokenizer(**settings) if is_chat else QwenTokenizer(**settings)


class Progress:
    """A streamer for `generate` that counts tokens on standard error."""

    def __init__(self):
        self.tokens = 0

    def put(self, ids):
        """The prompts, the first time; then the new token of each sequence."""
        if getattr(ids, "ndim", 0) == 2:
            return
        count = len(ids) if isinstance(ids, list) else 1
        if self.tokens == 0:
            # The first token's time is the prompt's, and that of compiling the graph.
            self.start, self.first, self.shown = time.time(), count, time.time()
        self.tokens += count
        if time.time() - self.shown > 0.5:
            self._show()

    def end(self):
        """A batch is done."""
        self._show()
        print(file=sys.stderr)
        self.tokens = 0

    def _show(self):
        self.shown = time.time()
        rate = (self.tokens - self.first) / max(self.shown - self.start, 1e-9)
        print(f"\r{self.tokens} tokens, {rate:.1f} tokens/s", end="", file=sys.stderr, flush=True)


def predict(args):
    """
    Answer every prompt of the command line through MindFormers' Trainer.

    Returns:
        list[str], one for each prompt: the prompt with its continuation, or a chat model's reply.
    """
    import mindspore as ms
    from mindformers import Trainer

    import qwen_model  # noqa: F401  registers the model with MindFormers
    prompts = read_prompts(args.predict_data)
    config = load_config(args)
    ms.set_context(mode=ms.GRAPH_MODE, device_target=config.context.device_target,
                   device_id=config.context.device_id or 0)
    if config.context.device_target == "Ascend":
        ms.set_context(max_device_memory=config.context.max_device_memory,
                       ascend_config=dict(config.context.ascend_config))
    tokenizer = build_tokenizer(config)
    model_config = config.model.model_config
    model_config.batch_size = _batch_size(len(prompts), model_config.batch_size or 1)
    limits = {}
    if args.max_new_tokens:
        limits["max_new_tokens"] = args.max_new_tokens
    else:
        limits["max_length"] = args.predict_length or model_config.max_decode_length
    Path(config.save_file).parent.mkdir(parents=True, exist_ok=True)
    task = Trainer(args=config, task=args.task, tokenizer=tokenizer)
    results = task.predict(input_data=prompts, batch_size=model_config.batch_size, streamer=Progress(), **limits)
    return [answer for result in results for answer in result["text_generation_text"]]


def _batch_size(prompts, limit):
    """The largest batch within the limit that divides the prompts evenly, as MindFormers' pipeline needs."""
    return max(size for size in range(1, limit + 1) if prompts % size == 0)


def _bool(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text}")
    return text.lower() in ("true", "1")


@contextlib.contextmanager
def stdout_for_answers(verbose):
    """
    A stream on the real standard output, while whatever else is written there goes to standard error, or, where it
    comes from MindFormers and is in its log file anyway, nowhere.
    """
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers, open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(2, 1)
        try:
            with contextlib.redirect_stdout(sys.stdout if verbose else nowhere):
                yield answers
        finally:
            os.dup2(answers.fileno(), 1)


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)
    if not args.verbose:
        os.environ.setdefault("GLOG_v", "3")
    with stdout_for_answers(args.verbose) as answers:
        try:
            for answer in predict(args):
                print(answer, file=answers, flush=True)
        except (ValueError, OSError) as error:
            print(f"run_qwen_7b: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
