"""
Clients that put a server under load, in a process of their own: `python -m qwen_mindspore.server.load`.

Reads {"url", "prompts", "max_tokens"} from standard input, a JSON a line, asks for all its prompts at once, streamed,
and writes what each got: {"token_ids", "first", "last"}, times by the machine's monotonic clock, which every process
shares. The first is that of the first token, not of the first byte.
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
        dict, `token_ids`, and `first` and `last`, the times at which the first and the last of them came.

    Raises:
        RuntimeError: The server did not answer, or not to the end.
    """
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "return_token_ids": True, **fields}
    ids, first, last = [], None, None
    async with session.post(url, json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{url}: {response.status}: {(await response.text())[:200]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"{url}: {event['error']['message']}")
            new = [token for choice in event["choices"] for token in choice.get("token_ids") or ()]
            if new:
                last = time.monotonic()
                first = first or last
                ids += new
    if len(ids) != max_tokens:
        raise RuntimeError(f"{url}: expected {max_tokens} tokens, found {len(ids)}")
    return {"token_ids": ids, "first": first, "last": last}


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
