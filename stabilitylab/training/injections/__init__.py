"""Disturbances planted in a real training, so that it is known what an analysis must find, and where."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from stabilitylab.errors import InputError
from stabilitylab.parameters import validated
from stabilitylab.training.batches import Batch as Images
from stabilitylab.training.injections.batch import Batch
from stabilitylab.training.injections.gradient import Gradient
from stabilitylab.training.injections.injection import Injection, Training
from stabilitylab.training.injections.learning_rate import LearningRate
from stabilitylab.training.injections.momentum_encoder import MomentumEncoder
from stabilitylab.training.injections.projection import Projection

__all__ = ["KINDS", "Injection", "Injections", "Training", "read"]

KINDS: Mapping[str, type[Injection]] = {
    "gradient": Gradient,
    "batch": Batch,
    "learning_rate": LearningRate,
    "projection": Projection,
    "momentum_encoder": MomentumEncoder,
}


def read(settings: Mapping[str, Any]) -> tuple[Injection, ...]:
    """Return the disturbances that settings ask for: ``inject``, a list of tables, or one as ``inject.kind`` and so on.

    Args:
        settings: dotted name to value; others than these are not looked at.

    Raises:
        InputError: if one is not of a known kind, or not valid.
    """
    single = {name.removeprefix("inject."): value for name, value in settings.items() if name.startswith("inject.")}
    given = settings.get("inject", ())
    if single and given:
        raise InputError("give either inject, a list, or the settings of one disturbance as inject.kind and so on")
    if single:
        return (_read_one("inject", single),)
    if isinstance(given, Mapping):
        return (_read_one("inject", given),)
    if given is False:
        return ()
    if not isinstance(given, list | tuple):
        raise InputError(f'inject is a list of tables such as [{{kind="gradient", step=300, ...}}]; it was {given!r}')
    return tuple(_read_one(f"inject[{at}]", each) for at, each in enumerate(given))


def _read_one(name: str, given: Any) -> Injection:
    if not isinstance(given, Mapping):
        raise InputError(f"{name} is a table with a kind; it was {given!r}")
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        was = f"was {kind!r}" if "kind" in given else "is missing"
        raise InputError(f"{name}.kind {was}; the kinds are {', '.join(KINDS)}")
    missing = [field for field, about in KINDS[kind].model_fields.items() if about.is_required() and field not in given]
    if missing:
        raise InputError(f"{name}.{missing[0]} is missing; a {kind} has {', '.join(KINDS[kind].model_fields)}")
    return validated(KINDS[kind], given, name)


class Injections:
    """The disturbances of one training.

    Args:
        injections: what is planted.
        training: where.

    Raises:
        InputError: if one cannot be planted there.
    """

    def __init__(self, injections: Sequence[Injection], training: Training) -> None:
        self._injections, self._training, self._config = injections, training, training.method.config
        for at, each in enumerate(injections):
            each.check(f"inject[{at}]", training)
        for each in injections:
            each.start(training)

    def planted(self) -> list[dict[str, Any]]:
        """Return the truth, as JSON types: what each one does, and the first and the last step of each time."""
        when = {"step", "steps", "every", "until"}
        return [
            {
                **each.model_dump(mode="json", exclude=when),
                "what": each.what(),
                "spans": [list(span) for span in each.spans(self._training.total)],
            }
            for each in self._injections
        ]

    def poison(self, stream: Generator[Images]) -> Generator[Images]:
        """Yield the batches of a stream, some poisoned; close the generator to close the stream."""
        with closing(stream):
            for batch in stream:
                self._training.step, views = batch.step, batch.views
                for each in self._now():
                    views = each.views(views, self._training)
                yield batch._replace(views=views)

    def before(self, step: int) -> None:
        """Act before the forward pass of a step, when the learning rate is set."""
        self._training.step = step
        self._training.dead.clear()
        for each in self._now():
            each.before(self._training)

    def after(self) -> None:
        """Act after the backward pass, before the gradients are unscaled, recorded and used."""
        for each in self._now():
            each.after(self._training)
        self._training.method.config = self._config

    def _now(self) -> list[Injection]:
        return [each for each in self._injections if each.on(self._training.step)]
