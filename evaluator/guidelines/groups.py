"""Which joint judges ride in one call: those of the same model and target."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from evaluator.errors import ConfigurationError
from evaluator.guidelines.definitions import Definition, JudgeDefinition
from evaluator.models.build import canonical

SHARED = ("filter", "sample_rate", "trace_view", "since", "span_filter")
"""What the members of a group have in common, for they look at the same traces."""

GroupKey = tuple[object, ...]


def group_key(judge: JudgeDefinition, model: str) -> GroupKey:
    """Whose call a joint judge shares: the model's name, the target, and what members have in common.

    `model` is the configuration's, for judges that name none.
    """
    name = judge.model or model
    with suppress(ConfigurationError):  # Told where the model is built.
        name = canonical(name)
    return (name, judge.target, *(getattr(judge, key) for key in SHARED))


def joint_groups(definitions: Iterable[Definition], model: str) -> dict[GroupKey, list[JudgeDefinition]]:
    """The joint judges by group, in their order."""
    groups: dict[GroupKey, list[JudgeDefinition]] = {}
    for definition in definitions:
        if isinstance(definition, JudgeDefinition) and definition.batch == "joint":
            groups.setdefault(group_key(definition, model), []).append(definition)
    return groups


def with_companions(
    wanted: Sequence[Definition], definitions: Iterable[Definition], model: str
) -> list[Definition]:
    """The wanted ones and whoever rides in one call with them, in the order of the definitions."""
    definitions = list(definitions)
    needed = {one.name for one in wanted}
    groups = joint_groups(definitions, model)
    for key in joint_groups(wanted, model):
        needed |= {member.name for member in groups.get(key, ())}
    return [one for one in definitions if one.name in needed]


def group_mistakes(definitions: Iterable[Definition], model: str) -> Iterator[tuple[JudgeDefinition, str]]:
    """The joint judges that have a model and a target in common, but look at other traces than the first, and why."""
    first: dict[GroupKey, JudgeDefinition] = {}
    for key, members in joint_groups(definitions, model).items():
        one = first.setdefault(key[:2], members[0])
        for member in members:
            differing = next((name for name in SHARED if getattr(member, name) != getattr(one, name)), None)
            if differing is not None:
                yield (
                    member,
                    f'{differing} is {_said(getattr(member, differing))}, but "{one.name}" ({one.path}:{one.line}) of the same '
                    f"joint group has {_said(getattr(one, differing))}: joint judges with the same model and target "
                    f"({key[0]}, {key[1]}) are one group and share {', '.join(SHARED[:3])} (make them equal, or write "
                    "batch: single)",
                )


def group_notes(definitions: Iterable[Definition], model: str) -> Iterator[tuple[JudgeDefinition, str]]:
    """What to know of each group, at its first member."""
    for members in joint_groups(definitions, model).values():
        names = ", ".join(member.name for member in members)
        if len(members) > 1:
            yield (
                members[0],
                f"one call for {names}: editing one of them, or adding one, is a new version of each of them",
            )
        else:
            yield members[0], f"batch: joint, but no other joint judge rides with {names}"


def _said(value: object) -> str:
    return "not set" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
