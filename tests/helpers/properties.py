"""
Property tests: what they are fed, and how often. Normally few examples, the same each time, so that all of them take
about a minute; QWEN_EXAMPLES=5000 tries so many of each, other ones each time.
"""
import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("QWEN_EXAMPLES", "0"))
NUMBERS = [0, 1, -1, 2, 0.5, -0.0, 1.0, 2.0, 1e-40, 5e-324, 1e300, 1e400, math.nan, -math.inf, 2 ** 31, 2 ** 32,
           2 ** 63, 10 ** 30, 10 ** 400, True, False]
TEXTS = ["", " ", "0", "1", "-1", "2.0", "1e400", "NaN", "true", "None", "null", "[", "[1]", '["a"]', "[[1]]", "{}",
         "hot", "Hello", "你好", "\ud800", "\u2028", "\x00", "<|im_end|>", "<|endoftext|>", "raw", "chatml", "user"]


def tried(examples):
    """A decorator: so many examples, or as many as the environment says."""
    return settings(max_examples=EXAMPLES or examples, deadline=None, derandomize=not EXAMPLES, database=None,
                    suppress_health_check=list(HealthCheck))


def numbers():
    """Those at the ends of ranges above all."""
    return st.sampled_from(NUMBERS) | st.integers(-3, 300) | st.floats()


def texts():
    """Those that mean something above all."""
    return st.sampled_from(TEXTS) | st.text(st.characters(), max_size=9)


def values(more=()):
    """Whatever Python has, nested a little."""
    leaves = st.one_of(st.none(), numbers(), texts(), *more)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "type", "text", "a"]), inner, max_size=3), max_leaves=5)


def python_values():
    """Those that JSON has not among them."""
    return values([st.binary(max_size=3), st.tuples(numbers()), st.builds(set), st.builds(object),
                   st.complex_numbers()])


def arguments(names, least=0, most=3, value=None):
    """Dicts with some of the names."""
    return st.dictionaries(st.sampled_from(sorted(names)), python_values() if value is None else value, min_size=least,
                           max_size=most)


def tell(error, names):
    """Check that an error is one line that names a key."""
    said = str(error)
    assert said and "\n" not in said and len(said) < 500, said
    assert any(name in said for name in names), said
