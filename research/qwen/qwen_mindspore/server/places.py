"""
Which replica answers: the one that has the beginning of a conversation in its cache, unless it has its hands full.

A conversation is told by its first messages, which all its requests share; of all replicas that are up it belongs to
the one whose number, hashed with those, is the largest (rendezvous hashing): when one goes, only its conversations
move, and when one with its number is there again, they come back.

Source: D. G. Thaler and C. V. Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on
Networking 6(1), 1998
"""
import hashlib
import json
import threading

__all__ = ["Call", "Places", "places_of", "what_is_asked"]

FIRST = 1024  # characters of a prompt, or ids, that tell it from others
_PLACES = {}  # name of an application of Ray Serve -> Places


def what_is_asked(body):
    """
    What a request's place depends on.

    Args:
        body (bytes): JSON, or nothing.

    Returns:
        (bytes, int): what its conversation begins with: system message and first question; or the beginning of its
        prompt; and how many answers it wants. A body that is none of these is refused later.
    """
    try:
        content = json.loads(body)
        wanted = content.get("n") or 1
        messages, prompt = content.get("messages"), content.get("prompt", content.get("content"))
    except (ValueError, AttributeError):
        return body[:FIRST], 1
    if isinstance(messages, list):
        first = next((place for place, message in enumerate(messages) if _role(message) == "user"), 0)
        begin = messages[:first + 1]
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        begin = prompt[0][:FIRST]
    else:
        begin = prompt[:FIRST] if isinstance(prompt, (str, list)) else None
    wanted = wanted if isinstance(wanted, int) else 1
    return json.dumps(begin, sort_keys=True).encode(), min(max(wanted, 1), 1000)


def _role(message):
    return message.get("role") if isinstance(message, dict) else None


class Call:
    """
    A request on its way to a replica.

    Args:
        begin (bytes): See `what_is_asked`.
        answers (int): How many it wants.

    Attributes:
        replica (str | None): The id of the replica that has it.
        refused (set[str]): Of those that would not take it.
        error (Exception | None): Why it is ended from here.
    """

    def __init__(self, begin, answers=1):
        self.begin, self.answers, self.replica, self.refused, self.error = begin, answers, None, set(), None


class Places:
    """
    Which replicas are up, and what each is at. The front and Ray Serve's router share it: they are in one process, but
    in two threads.

    Args:
        capacity (int): Answers that a replica computes at once.

    Attributes:
        up (dict[str, int]): Ids of the replicas that answer -> their numbers.
        calls (set[Call]): Those that have not ended.
    """

    def __init__(self, capacity):
        self.capacity, self.up, self.calls, self._lock = capacity, {}, set(), threading.Lock()

    def order(self, call):
        """
        Choose for a call, which counts there from now on.

        Returns:
            list[str], the ids of all replicas, the best first: the one that the conversation belongs to, or, where
            that is full and others have less to do, the one that has the least. Those that refused come last.
        """
        with self._lock:
            self.calls.discard(call)
            load, up = self._load(), dict(self.up)
            ids = sorted(up, key=lambda id: _score(call.begin, up[id]), reverse=True)
            ids.sort(key=lambda id: id in call.refused)
            if ids:
                home, *others = ids
                others.sort(key=lambda id: (id in call.refused, load[id]))
                if others and others[0] not in call.refused and load[home] >= self.capacity \
                        and load[others[0]] < load[home]:
                    others.insert(1, home)
                    ids = others
                else:
                    ids = [home, *others]
                call.replica = ids[0]
            self.calls.add(call)
            return ids

    def _load(self):
        load = dict.fromkeys(self.up, 0)
        for call in self.calls:
            if call.replica in load:
                load[call.replica] += call.answers
        return load

    def end(self, call):
        """A call is over."""
        with self._lock:
            self.calls.discard(call)

    def number(self, call):
        """int | None, the number of the replica that has a call."""
        return self.up.get(call.replica)

    def has_another(self, call):
        """Whether there is a replica that has not refused a call."""
        return any(id not in call.refused for id in self.up)

    def count(self):
        """(int, int): answers that are computed, and that wait."""
        with self._lock:
            loads = self._load().values()
        running = sum(min(load, self.capacity) for load in loads)
        return running, sum(loads) - running


def _score(begin, number):
    return hashlib.sha256(b"%d:%b" % (number, begin)).digest()


def places_of(name, capacity=1):
    """The Places of an application of Ray Serve, in this process."""
    return _PLACES.setdefault(name, Places(capacity))
