"""
Clients that put a server under load, in a process of their own: `python -m qwen_mindspore.server.load`.

Reads {"url", "prompts", "max_tokens"} from standard input, a JSON a line, asks for all its prompts at once, streamed,
and writes what each got: {"text", "tokens", "first", "last"}, times by the machine's monotonic clock, which every
process shares. The first is that of the first token, not of the first byte. While answers come nothing is read of them
but when they came: clients share the cores with what is measured.
"""
import asyncio
import json
import sys
import time

import aiohttp

__all__ = ["ask", "ask_all"]


async def ask(session, url, prompt, max_tokens, **fields):
    """
    Have one prompt continued.

    Args:
        session (aiohttp.ClientSession): Asks.
        url (str): Of /v1/completions.
        prompt (list[int]): Ids.
        max_tokens (int): So many tokens, whatever they are.
        fields: Of the request, besides.

    Returns:
        dict, `text`, `tokens`, and `first` and `last`, the times at which the first and the last text came.

    Raises:
        RuntimeError: The server did not answer, or not to the end.
    """
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}, **fields}
    pieces = []
    async with session.post(url, json=body) as response:
        async for piece, _ in response.content.iter_chunks():
            pieces.append((time.monotonic(), piece))
    if response.status != 200:
        raise RuntimeError(f"{url}: {response.status}: {b''.join(piece for _, piece in pieces)[:200]}")
    return _read(pieces, max_tokens, url)


def _read(pieces, max_tokens, url):
    """What came, by when it came."""
    text, tokens, times, rest = "", None, [], b""
    for when, piece in pieces:
        *events, rest = (rest + piece).split(b"\n\n")
        for event in (json.loads(event[6:]) for event in events if event.startswith(b"data: {")):
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']['message']}")
            new = "".join(choice["text"] for choice in event["choices"])
            text += new
            times += [when] if new else []
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if tokens != max_tokens or not times:
        raise RuntimeError(f"{url}: expected {max_tokens} tokens, found {tokens}")
    return {"text": text, "tokens": tokens, "first": times[0], "last": times[-1]}


async def ask_all(lines, write):
    """
    Ask what each line says, one line behind the other.

    Args:
        lines (Iterable[str]): See the module.
        write (Callable[[str], None]): Gets a line of JSON for each: {"began", "answers"}.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        for line in lines:
            asked = json.loads(line)
            began = time.monotonic()
            answers = await asyncio.gather(*(
                ask(session, asked["url"], prompt, asked["max_tokens"]) for prompt in asked["prompts"]))
            write(json.dumps({"began": began, "answers": answers}))


if __name__ == "__main__":
    asyncio.run(ask_all(sys.stdin, lambda line: print(line, flush=True)))
