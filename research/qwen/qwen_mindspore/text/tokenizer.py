"""The tokenizer of Qwen (first generation): byte-level BPE on tiktoken, with the ids of the reference."""
import base64
import codecs
import importlib.util
import logging
import numbers
import os
import re
import unicodedata
from pathlib import Path
from typing import ClassVar

import tiktoken
from mindformers.mindformer_book import MindFormerBook
from mindformers.models.tokenization_utils import PreTrainedTokenizer
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from qwen_mindspore.common.files import check_pointer, replacing
from qwen_mindspore.common.text import shown
from qwen_mindspore.text.files import read_tokenizer_config

__all__ = ["ENDOFTEXT", "IM_END", "IM_START", "QwenTokenizer", "find_vocab_file", "load_vocab"]

# Not MindFormers' logger, which writes to stdout: a user's terminal shows the answer and nothing else.
logger = logging.getLogger(__name__)

VOCAB_FILE = "qwen.tiktoken"
TOKENIZER_CONFIG = "tokenizer_config.json"

# How Qwen cuts text into words before merging bytes: cl100k's pattern, but every digit stands alone.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# White space within a line so long that tiktoken can't look behind it: at a million characters that is a "Regex error".
# `\s` of WORDS is Unicode's White_Space; Python's is a little more.
LONG_SPACE = re.compile(
    "[\t\v\f \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{100000,}")

ENDOFTEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTROL_TOKENS = (ENDOFTEXT, IM_START, IM_END, *(f"<|extra_{i}|>" for i in range(205)))

# A byte that no UTF-8 text holds: it stands for ids beyond the vocabulary, so `errors` rules over them too.
UNDECODABLE = b"\xff"

# The most rows that a model has beyond the vocabulary; released ones have up to 213.
MOST_ROWS_BEYOND = 1024

# Of `from_pretrained`, where a model is fetched: of no meaning for a folder.
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "resume_download", "revision", "token",
               "trust_remote_code", "use_fast")


def find_vocab_file(vocab_file=None, beside=None):
    """Find the vocabulary.

    Args:
        vocab_file (str | Path, optional): the file, or a folder that holds `qwen.tiktoken`. What is given is
            taken or refused, never replaced by something else.
        beside (str | Path, optional): a checkpoint or its folder; `qwen.tiktoken` is looked for beside it.

    Returns:
        str, the first that exists: `vocab_file`, `qwen.tiktoken` beside `beside`, the copy in the installed
        package `dashscope` (which is located, not imported).

    Raises:
        FileNotFoundError: `vocab_file` was given and is not there, or no vocabulary was found.
    """
    if vocab_file is not None:
        places = [_inside(vocab_file)]
        advice = f"give the path of a {VOCAB_FILE} or of the folder that holds it"
    else:
        places = [*_beside(beside), *_packaged()]
        advice = "run `pip install dashscope`, which brings it, or give vocab_file"
    for place in places:
        if place.is_file():
            return str(place)
    looked = " or ".join(map(str, places)) or f"{VOCAB_FILE} in the package dashscope"
    raise FileNotFoundError(f"Qwen's vocabulary: expected {looked}, found no such file; {advice}")


def _inside(path):
    path = Path(path)
    return path / VOCAB_FILE if path.is_dir() else path


def _beside(checkpoint):
    if checkpoint is None:
        return []
    path = Path(checkpoint)
    return [(path if path.is_dir() else path.parent) / VOCAB_FILE]


def _packaged():
    package = importlib.util.find_spec("dashscope")
    folders = (package and package.submodule_search_locations) or ()
    return [Path(folder, "resources", VOCAB_FILE) for folder in folders]


def load_vocab(path):
    """Read a vocabulary in tiktoken's file format: lines `BASE64_OF_TOKEN RANK`, ranks 0, 1, 2, ... in order.

    Returns:
        dict[bytes, int], token -> rank.

    Raises:
        ValueError: a line that is not of that form (as the last one of a broken download), a rank out of
            order, a token that comes twice, or a single byte without a token: tiktoken cannot encode then; or
            git-lfs's pointer in place of the file.
    """
    check_pointer(path)
    ranks = {}
    for number, line in enumerate(Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line:
            continue
        here = f"{path}, line {number}"
        try:
            token, rank = _parse(line)
        except ValueError as err:
            raise ValueError(f"{here}: expected 'BASE64 RANK', found {_shown(line)}") from err
        if rank != len(ranks):
            raise ValueError(f"{here}: expected rank {len(ranks)} (they count up from 0), found {rank}")
        if token in ranks:
            raise ValueError(f"{here}: expected a new token, found that of rank {ranks[token]} again")
        ranks[token] = rank
    if not ranks:
        raise ValueError(f"{path}, line 1: expected 'BASE64 RANK', found an empty file")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"{path}: expected a token for every byte, found none for 0x{missing[0]:02x}")
    return ranks


def _parse(line):
    encoded, rank = line.split()
    token = base64.b64decode(encoded, validate=True)
    if not token or not rank.isdigit():
        raise ValueError
    return token, int(rank)


def _shown(line, limit=40):
    text = line.decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _word_end(text, end, allowed):
    """
    Where the word ends that is white space up to `end`, so that a text may be cut there and before it, and its parts
    have the ids of the whole; None where it may not.

    By WORDS the word is all of it before the end of the text, or of the text before a control token; elsewhere its last
    character goes with what follows. Before a line's end it is a part of a word, which tiktoken finds without looking
    behind it.
    """
    if end < len(text) and text[end] in "\r\n":
        return None
    is_last = end == len(text) or any(text.startswith(token, end) for token in allowed)
    return end if is_last else end - 1


def _ids(value):
    """
    Ids as an int, or lists of them, of whatever holds them: ints, lists, numpy arrays, Tensors of MindSpore or torch.
    ValueError for what is none.
    """
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple, range)):
        return list(value) if all(type(item) is int for item in value) else [_ids(item) for item in value]
    is_whole = isinstance(value, numbers.Real) and not isinstance(value, bool) and value % 1 == 0
    if not is_whole:
        raise ValueError(f"token id: expected an integer, a list, an array or a Tensor of them, found {shown(value)}")
    return int(value)


def _depth(ids):
    """0 of an id, 1 of a list of ids, ..."""
    return 1 + max(map(_depth, ids), default=0) if isinstance(ids, list) else 0


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class QwenTokenizer(PreTrainedTokenizer):
    """Text to ids and back, equal to the reference QWenTokenizer.

    Ordinary tokens are `bytes` (a token may be part of a character), control tokens are `str`. The control
    tokens `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`, `<|extra_0|>` ... `<|extra_204|>` follow the last
    rank: 151643 to 151850 with Qwen's own vocabulary. The vocabulary cannot grow, and nothing is added around
    a text: Qwen has no token for its beginning.

    Text is normalized to NFC before it is encoded. Control tokens typed in it become control tokens, unless
    `allowed_special=set()` is given; text of users should be encoded so. A surrogate without its half becomes
    U+FFFD, as in tiktoken.

    Args:
        vocab_file (str | Path, optional): see `find_vocab_file`.
        errors (str): what `decode` does with bytes that are not UTF-8, as in `bytes.decode`.
        pad_token, eos_token (str): any control token. One that Qwen does not have (old YAMLs carry Llama's
            `<unk>`, `<s>`, `</s>`) is replaced by `<|endoftext|>`, with a warning; the same holds for
            bos_token, unk_token, sep_token, cls_token and mask_token, which are unset by default.
        **kwargs: MindFormers' own: padding_side, truncation_side, model_max_length, ... Keys of a YAML that
            belong to other tokenizers have no effect.

    Attributes:
        mergeable_ranks (dict[bytes, int]): ordinary token -> id.
        special_tokens (dict[str, int]): control token -> id.
        eod_id, im_start_id, im_end_id (int): ids of the three control tokens with a meaning.
        tokenizer (tiktoken.Encoding): what does the work.

    Raises:
        FileNotFoundError: see `find_vocab_file`.
        ValueError: see `load_vocab`; or `additional_special_tokens` holds a token that Qwen does not have.
    """

    vocab_files_names: ClassVar[dict] = {"vocab_file": VOCAB_FILE}
    model_input_names: ClassVar[list] = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file=None, errors="replace",
                 pad_token=ENDOFTEXT, eos_token=ENDOFTEXT, **kwargs):
        self.vocab_file = find_vocab_file(vocab_file)
        self.errors = errors
        self.mergeable_ranks = load_vocab(self.vocab_file)
        first = len(self.mergeable_ranks)
        self.special_tokens = {name: i for i, name in enumerate(CONTROL_TOKENS, start=first)}
        self.decoder = {i: token for token, i in self.get_vocab().items()}
        self.tokenizer = tiktoken.Encoding(
            "Qwen", pat_str=WORDS, mergeable_ranks=self.mergeable_ranks, special_tokens=self.special_tokens)
        self.eod_id = self.special_tokens[ENDOFTEXT]
        self.im_start_id = self.special_tokens[IM_START]
        self.im_end_id = self.special_tokens[IM_END]
        roles = self._known_roles({**kwargs, "pad_token": pad_token, "eos_token": eos_token})
        super().__init__(**{**kwargs, **roles, "errors": errors})

    def _known_roles(self, options):
        single = [role for role in self.SPECIAL_TOKENS_ATTRIBUTES if role != "additional_special_tokens"]
        roles = {role: str(options[role]) for role in single if options.get(role) is not None}
        foreign = {role: token for role, token in roles.items() if token not in self.special_tokens}
        if foreign:
            named = ", ".join(f"{role} {token!r}" for role, token in foreign.items())
            logger.warning("Qwen's vocabulary has no %s: %s is used instead", named, ENDOFTEXT)
        return {**roles, **dict.fromkeys(foreign, ENDOFTEXT)}

    @property
    def vocab_size(self):
        """int, ordinary and control tokens: 151851 with Qwen's own vocabulary. Models have some rows more."""
        return self.tokenizer.n_vocab

    def __len__(self):
        return self.vocab_size

    def get_vocab(self):
        """dict[bytes | str, int], every token -> id."""
        return {**self.mergeable_ranks, **self.special_tokens}

    @classmethod
    def from_pretrained(cls, name_or_path, *args, **kwargs):
        """
        The tokenizer of a folder: what `save_pretrained` wrote, a model of Hugging Face's, or a converted checkpoint.

        Args:
            name_or_path (str | Path): the folder, or its `qwen.tiktoken`.
            **kwargs: as in the constructor.

        Raises:
            FileNotFoundError: no such folder, or there is no vocabulary in it.
            ValueError: see the class; a tokenizer_config.json that is not JSON, or with a value that can't be.
        """
        path = Path(kwargs.pop("pretrained_model_name_or_path", None) or name_or_path)
        if path.is_dir() and any(path.glob("*.yaml")):
            return super().from_pretrained(str(path), *args, **kwargs)
        saved = read_tokenizer_config(path / TOKENIZER_CONFIG) if (path / TOKENIZER_CONFIG).is_file() else {}
        given = {key: value for key, value in kwargs.items() if key not in HUB_OPTIONS}
        return cls(str(path), *args, **{**saved, **given})

    def __setattr__(self, name, value):
        """A role, as `pad_token`, is for a control token: another one would fail later, when a batch is padded."""
        roles = self.SPECIAL_TOKENS_ATTRIBUTES
        if value is not None and name in roles:
            self._add_tokens(value if isinstance(value, (list, tuple)) else [value], special_tokens=True)
        is_id = name.endswith("_id") and name.removesuffix("_id") in roles
        if value is not None and is_id and not isinstance(self.decoder.get(value), str):
            raise ValueError(f"{name}: expected the id of a control token, {self.eod_id} to {self.vocab_size - 1}, "
                             f"found {value!r}")
        super().__setattr__(name, value)

    def add_special_tokens(self, special_tokens_dict, replace_additional_special_tokens=True):
        """
        As MindFormers': gives control tokens their roles, {"pad_token": "<|extra_0|>", ...}.

        Raises:
            ValueError: a role that there isn't, or a token that Qwen doesn't have; nothing is changed then.
        """
        for role, token in (special_tokens_dict or {}).items():
            if role not in self.SPECIAL_TOKENS_ATTRIBUTES:
                raise ValueError(f"{role}: no such role of a token, expected one of "
                                 f"{', '.join(self.SPECIAL_TOKENS_ATTRIBUTES)}")
            self._add_tokens(token if isinstance(token, (list, tuple)) else [token], special_tokens=True)
        return super().add_special_tokens(special_tokens_dict, replace_additional_special_tokens)

    def _add_tokens(self, new_tokens, special_tokens=False):
        """Add nothing: 0 for tokens that are control tokens already, else ValueError."""
        for token in map(str, new_tokens):
            if token not in self.special_tokens:
                kind = "control" if special_tokens else "ordinary"
                raise ValueError(f"cannot add the {kind} token {token!r}: Qwen's vocabulary is fixed; "
                                 "use one of <|extra_0|> ... <|extra_204|>, which are free")
        return 0

    def tokenize(self, text, allowed_special="all", disallowed_special=()):
        """Cut a text into tokens.

        Args:
            text (str): any text.
            allowed_special ("all" | set[str]): control tokens that are parsed where they stand in the text.
            disallowed_special ("all" | Collection[str]): control tokens that are refused.

        Returns:
            list[bytes | str], ordinary and control tokens.

        Raises:
            ValueError: the text holds a disallowed control token.
        """
        text = unicodedata.normalize("NFC", text)
        allowed = self.special_tokens if allowed_special == "all" else allowed_special
        ids, start = [], 0
        for space in LONG_SPACE.finditer(text):
            end = _word_end(text, space.end(), allowed)
            if end is None:
                continue
            ids += self.tokenizer.encode(text[start:space.start()], allowed_special=allowed_special,
                                         disallowed_special=disallowed_special)
            ids += self._one_word(text[space.start():end])
            start = end
        ids += self.tokenizer.encode(text[start:], allowed_special=allowed_special,
                                     disallowed_special=disallowed_special)
        return [self.decoder[i] for i in ids]

    def _one_word(self, text):
        """The ids of a text whose bytes are merged as one word."""
        encoding = tiktoken.Encoding(
            "word", pat_str=r"[\s\S]+", mergeable_ranks=self.mergeable_ranks, special_tokens={})
        return encoding.encode_ordinary(text)

    def convert_tokens_to_ids(self, tokens):
        """One token (bytes | str) -> int, a list of them -> list[int]. ValueError for an unknown one."""
        if tokens is None or isinstance(tokens, (bytes, str)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_token_to_id(self, token):
        index = (self.special_tokens if isinstance(token, str) else self.mergeable_ranks).get(token)
        if index is None:
            raise ValueError(f"token {token!r}: expected bytes of the vocabulary or the name of a control "
                             "token; to turn text into ids, use encode")
        return index

    def convert_ids_to_tokens(self, ids, skip_special_tokens=False):
        """One id -> bytes | str, a sequence of ids -> list of them. ValueError for an unknown one."""
        ids = _ids(ids)
        if isinstance(ids, int):
            return self._convert_id_to_token(ids)
        if any(isinstance(i, list) for i in ids):
            raise ValueError("token ids: expected one id or a list of them, found lists in a list")
        return [self._convert_id_to_token(i) for i in ids if not (skip_special_tokens and i >= self.eod_id)]

    def _convert_id_to_token(self, index):
        if index not in self.decoder:
            raise ValueError(f"token id {index}: expected 0 to {self.vocab_size - 1} "
                             f"(the vocabulary has {self.vocab_size} tokens)")
        return self.decoder[index]

    def convert_tokens_to_string(self, tokens):
        """list[bytes | str] -> str; bytes that are not UTF-8 as `errors` of the constructor says."""
        return self._join(tokens).decode("utf-8", self.errors)

    @staticmethod
    def _join(tokens):
        return b"".join(token.encode() if isinstance(token, str) else token for token in tokens)

    def decode(self, token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=None, **kwargs):
        """Turn ids into text.

        A model has rows beyond the vocabulary (151851 to 151935 of 151936), untrained but not impossible to
        sample: such an id must not cost the user a finished answer. It counts as a byte that is not UTF-8
        (U+FFFD with errors "replace", nothing with "ignore"), or is left out with the control tokens.

        Args:
            token_ids: an int, a 1-D list, numpy array or Tensor, MindSpore's or torch's, of ids; or a batch: a list of
                those, or 2-D.
            skip_special_tokens (bool): leave out all control tokens.
            clean_up_tokenization_spaces: has no effect; bytes come back as they were.
            errors (str, optional): overrides the constructor's `errors` in this call.

        Returns:
            str, or list[str] for a batch.

        Raises:
            ValueError: a negative id, one far beyond the vocabulary, or what is no id; with errors "strict" bytes that
                are not UTF-8.
        """
        token_ids = _ids(token_ids)
        token_ids = [token_ids] if isinstance(token_ids, int) else token_ids
        depths = {_depth(i) for i in token_ids}
        if depths not in (set(), {0}, {1}):
            raise ValueError("token ids: expected a list of ids, or of lists of ids, found both or deeper ones")
        return super().decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)

    def _decode(self, token_ids, skip_special_tokens=False, errors=None, **_):
        if min(token_ids, default=0) < 0:
            raise ValueError(f"token id {min(token_ids)}: expected 0 to {self.vocab_size - 1}; "
                             "ignored labels must be dropped before decoding")
        if max(token_ids, default=0) >= self.vocab_size + MOST_ROWS_BEYOND:
            raise ValueError(f"token id {max(token_ids)}: expected 0 to {self.vocab_size - 1}, or a few beyond: is "
                             "this the tokenizer of that model?")
        return self.decode_bytes(token_ids, skip_special_tokens).decode("utf-8", errors or self.errors)

    def decode_bytes(self, token_ids, skip_special_tokens=False):
        """The bytes of a list of ids, which may begin and end within a character; see `decode`."""
        if skip_special_tokens:
            token_ids = [i for i in token_ids if i < self.eod_id]
        return self._join([self.decoder.get(i, UNDECODABLE) for i in token_ids])

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Write `[PREFIX-]qwen.tiktoken` into a folder, which is made if need be.

        Returns:
            tuple[str], the path written: it holds the whole vocabulary or, after a failure, what it held.
        """
        name = f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE
        path = os.path.join(save_directory, name)
        with replacing(path) as written:
            written.write_bytes(b"".join(
                b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in self.mergeable_ranks.items()))
        return (path,)


# save_pretrained writes the processor's name into its YAML and looks it up here.
MindFormerBook.get_tokenizer_name_to_processor()[QwenTokenizer.__name__] = "QwenProcessor"
