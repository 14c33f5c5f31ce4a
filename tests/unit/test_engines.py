"""What engines need beside Ray: chunks, shares of limits, and what workers are told of the environment."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from evaluator.chunk import Chunk, cut_finer
from evaluator.config import BudgetSettings, JudgeSettings
from evaluator.engines.ray import handed_on
from evaluator.engines.share import share_of

AROUND = (datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))


@given(
    sizes=st.lists(st.integers(min_value=0, max_value=30), max_size=5),
    size=st.integers(min_value=1, max_value=20),
)
def test_finer_chunks_hold_the_same_traces_in_the_same_order(sizes: list[int], size: int) -> None:
    chunks = [
        Chunk(number=number, trace_ids=[f"{number}/{one}" for one in range(count)], around=AROUND)
        for number, count in enumerate(sizes)
    ]

    finer = list(cut_finer(chunks, lambda left: max(min(size, left // 2), 1)))

    assert [one for chunk in finer for one in chunk.trace_ids] == [
        one for chunk in chunks for one in chunk.trace_ids
    ]
    assert [chunk.number for chunk in finer] == list(range(len(finer)))
    assert all(1 <= len(chunk.trace_ids) <= size for chunk in finer)


@given(
    concurrency=st.integers(min_value=1, max_value=200),
    tokens=st.integers(min_value=0, max_value=10**6),
    count=st.integers(min_value=1, max_value=20),
)
def test_the_shares_of_all_workers_are_the_whole(concurrency: int, tokens: int, count: int) -> None:
    settings = JudgeSettings(
        max_concurrency=concurrency,
        requests_per_minute=90,
        budget=BudgetSettings(tokens_per_run=tokens, usd_per_run=3, usd_per_day=20),
    )

    shares = [share_of(settings, number, count) for number in range(count)]

    assert sum(share.max_concurrency for share in shares) == concurrency
    assert sum(share.budget.tokens_per_run or 0 for share in shares) == tokens
    assert {share.requests_per_minute for share in shares} == {90 / count}
    assert {share.budget.usd_per_run for share in shares} == {3 / count}
    assert {(share.tokens_per_minute, share.budget.usd_per_day) for share in shares} == {(None, 20)}


def test_workers_get_keys_and_addresses_and_nothing_of_a_machine() -> None:
    environment = {
        "OPENAI_API_KEY": "k", "AWS_REGION": "eu", "HTTPS_PROXY": "p", "MISTRAL_API_KEY": "m", "MY_GATEWAY_TOKEN": "t",
        "PATH": "/bin", "HOME": "/root", "RAY_AUTH_TOKEN": "r", "PYTHONPATH": "x", "EVALUATOR_SETTLE": "0s",
    }  # fmt: skip

    assert set(handed_on(environment)) == {
        "OPENAI_API_KEY", "AWS_REGION", "HTTPS_PROXY", "MISTRAL_API_KEY", "MY_GATEWAY_TOKEN",
    }  # fmt: skip
