"""From a judge's definition to the scorer: alone, in a group that shares a call, or a panel of models."""

from collections.abc import Callable, Mapping, Sequence

from evaluator.guidelines.definitions import JudgeDefinition
from evaluator.models.cache import Cache
from evaluator.models.client import Model
from evaluator.scorers.joint import JointCall, JointJudge
from evaluator.scorers.judge import Judge, ModelScorer
from evaluator.scorers.materials import Materials
from evaluator.scorers.panel import PanelJudge
from evaluator.scorers.reply import Passes
from evaluator.scorers.watched import Watch, unwatched


class Judges:
    """Builds judges. `groups` holds, by its name, all members of a joint judge's group.

    `model` gives the model of a name (None: the configured one) that a judge asks, `pass_if` what tells whether a value of
    a judge passes; `watch` goes around each judging, of a group or a panel as a whole. Raises ConfigurationError for a judge that cannot work.
    """

    def __init__(
        self,
        *,
        model: Callable[[JudgeDefinition, str | None], Model],
        materials: Materials,
        pass_if: Callable[[JudgeDefinition], Passes | None],
        groups: Mapping[str, Sequence[JudgeDefinition]],
        cache: Cache | None = None,
        watch: Watch = unwatched,
    ) -> None:
        self._model = model
        self._watch = watch
        self._materials = materials
        self._pass_if = pass_if
        self._groups = groups
        self._cache = cache
        self._calls: dict[tuple[str, ...], JointCall] = {}

    def build(self, definition: JudgeDefinition) -> ModelScorer:
        if definition.batch == "joint":
            return JointJudge(definition, self._call(definition))
        if definition.models or definition.escalate_to:
            return self._panel(definition)
        return self._judge(definition, definition.model)

    def _judge(self, definition: JudgeDefinition, model: str | None, *, unsure: bool = False) -> Judge:
        return Judge(
            definition,
            model=self._model(definition, model),
            materials=self._materials,
            pass_if=self._pass_if(definition),
            unsure=unsure,
            cache=self._cache,
            watch=self._watch,
        )

    def _panel(self, definition: JudgeDefinition) -> PanelJudge:
        last = definition.escalate_to
        voters = definition.models or (definition.model,)
        return PanelJudge(
            definition,
            voters=[self._judge(definition, model, unsure=last is not None) for model in voters],
            arbiter=None if last is None else self._judge(definition, last),
            pass_if=self._pass_if(definition),
            watch=self._watch,
        )

    def _call(self, definition: JudgeDefinition) -> JointCall:
        members = self._groups[definition.name]
        key = tuple(member.name for member in members)
        if key not in self._calls:
            self._calls[key] = JointCall(
                members,
                model=self._model(definition, definition.model),
                materials=self._materials,
                pass_if={member.name: self._pass_if(member) for member in members},
                cache=self._cache,
                watch=self._watch,
            )
        return self._calls[key]
