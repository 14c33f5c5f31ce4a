"""Calls that begin alike: the first is answered before the others go out, so that the provider's prompt cache serves them."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import Any

from evaluator.models.endpoint import Messages

SHORTEST = 4_096
"""Characters: some 1,024 tokens, below which no provider caches a prefix (OpenAI, Gemini, Anthropic)."""
WARM_FOR = timedelta(minutes=4)
"""Providers keep a prefix for five minutes or more after its last use."""
PATIENCE = timedelta(seconds=30)
"""How long the others wait for the first; then a cache is worth less than the time."""
REMEMBERED = 10_000


class Prefixes:
    """What the calls to one model begin with. `pays`: the provider takes less for input that it has cached.

    Nothing waits that would not gain by it: short prompts, and calls whose beginning no other call shares.
    """

    def __init__(self, *, pays: bool, seconds: Callable[[], float] = monotonic) -> None:
        self.pays = pays
        self._seconds = seconds
        self._askers: Counter[Hashable] = Counter()
        self._first: dict[Hashable, asyncio.Event] = {}
        self._warm: OrderedDict[Hashable, float] = OrderedDict()

    def expect(self, kind: Hashable) -> None:
        """There is one more who asks about each trace with this kind of beginning."""
        self._askers[kind] += 1

    def shared(self, kind: Hashable) -> bool:
        """Whether several ask with this kind of beginning."""
        return self._askers[kind] > 1

    @asynccontextmanager
    async def turn(self, messages: Messages, shared: int) -> AsyncIterator[bool]:
        """Around a call whose first user message begins with so many characters that others share.

        Gives whether the provider has the beginning by now: then the call is best sent soon.
        """
        prefix = beginning(messages, shared)
        if not self.pays or sum(map(len, prefix)) < SHORTEST:
            yield False
            return
        key = hash(prefix)
        if first := self._first.get(key):
            try:
                async with asyncio.timeout(PATIENCE.total_seconds()):
                    await first.wait()
            except TimeoutError:
                pass  # Then it pays for the trace itself.
        if self._is_warm(key) or key in self._first:
            yield self._is_warm(key)
            return
        self._first[key] = asyncio.Event()
        try:
            yield False
            self._warm[key] = self._seconds()
            if len(self._warm) > REMEMBERED:
                self._warm.popitem(last=False)
        finally:
            self._first.pop(key).set()

    def _is_warm(self, key: Hashable) -> bool:
        return self._seconds() - self._warm.get(key, float("-inf")) < WARM_FOR.total_seconds()


def beginning(messages: Messages, shared: int) -> tuple[str, ...]:
    """The texts of the messages up to the end of what is shared; none where nothing is."""
    texts: list[str] = []
    for message in messages if shared else ():
        content = str(message.get("content", ""))
        if message.get("role") == "user":
            return (*texts, content[:shared])
        texts.append(content)
    return ()


def marked(messages: Messages, shared: int) -> list[dict[str, Any]]:
    """The messages with a mark at the end of what is shared, for providers that cache only what is marked.

    In Anthropic's form (`cache_control`), which litellm brings into that of Bedrock and Vertex.
    """
    copies = [dict(message) for message in messages]
    if sum(map(len, beginning(messages, shared))) < SHORTEST:
        return copies
    user = next(message for message in copies if message.get("role") == "user")
    content = str(user["content"])
    head = {"type": "text", "text": content[:shared], "cache_control": {"type": "ephemeral"}}
    user["content"] = [head, {"type": "text", "text": content[shared:]}]
    return copies


def wants_marks(model: str) -> bool:
    """Whether a model's provider caches only what is marked: Anthropic's models, wherever they are served, and Nova."""
    provider, _, name = model.partition("/")
    return (
        provider == "anthropic"
        or ("claude" in name and provider in ("bedrock", "vertex_ai", "azure_ai", "databricks", "openrouter"))
        or (provider == "bedrock" and "nova" in name)
    )
