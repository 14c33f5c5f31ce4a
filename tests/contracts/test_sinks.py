"""What every sink owes: each result once however often it is published, and a cursor that tells the truth."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest

from evaluator.errors import SinkError
from evaluator.feedback import Assessment, Erased, Feedback, Scored, Target
from evaluator.sinks.annotations import AnnotationsSink
from evaluator.sinks.cursor import LedgerCursorSink
from evaluator.sinks.sink import Sink
from evaluator.tables.delta import DeltaStore
from evaluator.tables.forgetting import forget
from evaluator.tables.ledger import Ledger, note
from evaluator.tables.schemas import ANNOTATIONS

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def an_assessment(seq: int, trace: str = "a", revision: int = 0, target: Target | None = None) -> Assessment:
    return Assessment(
        seq=seq,
        target=target or Target(type="TRACE", target_id=trace, trace_id=trace),
        name="polite",
        version="v1",
        revision=revision,
        source_type="CODE",
        scored=Scored(outcome=Feedback(value="yes", passed=True, rationale="it is")),
        run_id="run",
        at=NOON.replace(second=seq),
    )


class Place(Protocol):
    """A sink with a way to see what is in it, and to take its place away."""

    def sink(self) -> Sink: ...
    def published(self) -> list[tuple[str, int]]:
        """Trace and seq's second of every row."""
        ...

    def take_away(self) -> None: ...
    def bring_back(self) -> None: ...


class Annotations:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = DeltaStore(str(folder / "annotations"))
        self._store.create(ANNOTATIONS)

    def sink(self) -> Sink:
        return AnnotationsSink(self._store, "the ledger's id")

    def published(self) -> list[tuple[str, int]]:
        rows = self._store.open().query("select target_id, updated_at from t").to_pylist()
        return sorted((row["target_id"], row["updated_at"].second) for row in rows)

    def take_away(self) -> None:
        (self._folder / "annotations").rename(self._folder / "away")

    def bring_back(self) -> None:
        (self._folder / "away").rename(self._folder / "annotations")


class Elsewhere:
    """A store that keeps each id once, with its cursor in a real ledger."""

    name = "elsewhere"

    def __init__(self, folder: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._ledger = Ledger(DeltaStore(str(folder / "ledger")), clock)
        self._ledger.provision()
        self._kept: dict[tuple[Target, int], int] = {}
        self._away = False
        self.lost: datetime | None = None

    def sink(self) -> Sink:
        return LedgerCursorSink(self, self._ledger.open)

    def due(self) -> bool:
        return False

    def waiting(self) -> int:
        return 0

    def lost_since(self) -> datetime | None:
        return self.lost

    def remember(self) -> None:
        self.lost = None

    async def publish(self, assessments: Sequence[Assessment]) -> None:
        if self._away:
            raise SinkError("elsewhere is away")
        for one in assessments:
            self._kept.setdefault((one.target, one.revision), one.seq)

    async def forget(self, erased: Sequence[Erased]) -> None:
        if self._away:
            raise SinkError("elsewhere is away")
        self._kept = {
            key: seq for key, seq in self._kept.items() if not any(one.covers(*key) for one in erased)
        }

    def published(self) -> list[tuple[str, int]]:
        return sorted((target.trace_id, seq) for (target, _), seq in self._kept.items())

    def take_away(self) -> None:
        self._away = True

    def bring_back(self) -> None:
        self._away = False


@pytest.fixture(params=[Annotations, Elsewhere])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Callable[[Path], Place] = request.param
    return made(tmp_path)


async def test_the_cursor_is_0_at_first_and_then_where_publishing_came_to(place: Place) -> None:
    assert await place.sink().cursor() == 0
    await place.sink().publish([an_assessment(1)], 3)
    assert await place.sink().cursor() == 3


async def test_the_same_results_again_add_nothing(place: Place) -> None:
    results = [an_assessment(1, "a"), an_assessment(2, "b")]

    await place.sink().publish(results, 2)
    await place.sink().publish(results, 2)

    assert place.published() == [("a", 1), ("b", 2)]


async def test_two_publishers_at_once_publish_once(place: Place) -> None:
    results = [an_assessment(1, "a"), an_assessment(2, "b")]

    await asyncio.gather(*(place.sink().publish(results, 2) for _ in range(3)))

    assert place.published() == [("a", 1), ("b", 2)]
    assert await place.sink().cursor() == 2


async def test_a_place_that_is_away_keeps_its_cursor_and_takes_all_when_it_is_back(place: Place) -> None:
    await place.sink().publish([an_assessment(1, "a")], 1)

    place.take_away()
    with pytest.raises(SinkError):
        await place.sink().publish([an_assessment(2, "b")], 2)
    place.bring_back()
    cursor = await place.sink().cursor()
    await place.sink().publish([an_assessment(2, "b")], 2)

    assert cursor == 1
    assert place.published() == [("a", 1), ("b", 2)]


async def test_the_cursor_moves_also_where_there_is_nothing_to_publish(place: Place) -> None:
    await place.sink().publish([], 5)

    assert await place.sink().cursor() == 5


async def test_a_revision_is_published_beside_the_first_result(place: Place) -> None:
    await place.sink().publish([an_assessment(1)], 1)
    await place.sink().publish([an_assessment(2, revision=1)], 2)

    assert place.published() == [("a", 1), ("a", 2)]


async def test_what_is_forgotten_is_gone_and_the_cursor_stays(place: Place) -> None:
    await place.sink().publish([an_assessment(1, "a"), an_assessment(2, "b")], 2)

    for _ in range(2):
        await place.sink().forget([Erased(target=Target(type="TRACE", target_id="a", trace_id="a"))])

    assert place.published() == [("b", 2)]
    assert await place.sink().cursor() == 2


async def test_of_a_session_that_is_forgotten_goes_what_was_said_and_stays_what_came_since(
    place: Place,
) -> None:
    session = Target(type="SESSION", target_id="s", trace_id="a", session_id="s")
    of_session = [an_assessment(seq, revision=seq, target=session) for seq in (1, 2, 4)]
    await place.sink().publish([*of_session, an_assessment(3, "a")], 4)

    for _ in range(2):
        await place.sink().forget([Erased(target=session, revision=2)])

    assert place.published() == [("a", 3), ("a", 4)]


async def test_a_place_that_is_away_says_that_it_has_not_forgotten(place: Place) -> None:
    place.take_away()

    with pytest.raises(SinkError):
        await place.sink().forget([Erased(target=Target(type="TRACE", target_id="a", trace_id="a"))])


async def test_what_is_erased_while_it_is_posted_is_taken_back(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path)
    ledger = Ledger(DeltaStore(str(tmp_path / "ledger")), lambda: datetime.now(UTC))
    publish = elsewhere.publish

    async def erased_meanwhile(assessments: Sequence[Assessment]) -> None:
        forget(ledger, ["a"], [])
        await publish(assessments)

    elsewhere.publish = erased_meanwhile  # type: ignore[method-assign]  # another process is faster
    await elsewhere.sink().publish([an_assessment(1, "a"), an_assessment(1, "b")], 1)

    assert elsewhere.published() == [("b", 1)]


async def test_what_lost_its_state_is_asked_again_from_then_on_until_it_passes_the_cursor(
    tmp_path: Path,
) -> None:
    clock = [NOON]
    elsewhere = Elsewhere(tmp_path, lambda: clock[-1])
    ledger = Ledger(DeltaStore(str(tmp_path / "ledger")), lambda: clock[-1])
    for hour in range(1, 4):
        clock.append(NOON + timedelta(hours=hour))
        ledger.open().commit([[note(f"at {hour}", state="done")]])
    seq = ledger.open().seq
    await elsewhere.sink().publish([], seq)
    elsewhere.lost = NOON + timedelta(hours=1, minutes=30)

    asked_from = await elsewhere.sink().cursor()
    await elsewhere.sink().publish([], asked_from + 1)
    due_on_the_way = elsewhere.sink().due()
    await elsewhere.sink().publish([], seq)

    assert asked_from == seq - 2
    assert due_on_the_way
    assert not elsewhere.sink().due()
    assert await elsewhere.sink().cursor() == seq
