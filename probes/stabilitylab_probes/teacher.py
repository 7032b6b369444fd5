"""How far a momentum encoder, teacher or other average has fallen behind the model that it follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.parameter import is_lazy

from stabilitylab import probe
from stabilitylab.errors import InputError
from stabilitylab.layers import counterparts, plain_names
from stabilitylab_probes._pieces import pieces, whole

__all__ = ["Probe"]


class Probe(probe.Probe):
    """Series ``teacher.distance``: ||student - teacher|| / ||student|| before the update, a column per tensor.

    The teacher is the module that the recorder was given, matched by the names and shapes of its parameters, or else
    whatever inside the model follows a part of it by its name (MoCo's ``momentum_backbone``). A column is named after
    the student's tensor, or after the teacher's where that one has a second teacher. Exactly 0 where both are equal,
    also where both are zero; inf where the student alone is zero. Buffers are not compared.
    """

    cost: ClassVar[str] = (
        "5 tensor operations and 48 MB per 4 million entries (per 262,144 and 3 MB on a CPU), "
        "one pass over students and teachers; no wait"
    )

    class Parameters(probe.Parameters):
        """When the distance is measured."""

        every: PositiveInt = 10
        """Measure at every so many steps."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, other, student, teacher in _pairs(target):
            if _placed(student) != _placed(teacher):
                raise InputError(
                    f"the probe 'teacher' cannot compare {name} with its teacher, which is sharded otherwise"
                )
            pairs[other if name in pairs else name] = student, teacher
        if not pairs:
            raise InputError(
                "the probe 'teacher' needs a module that follows the model, with parameters of the same names and "
                "shapes: pass teacher=, or name it after what it follows (momentum_backbone and backbone)"
            )
        self._students, self._teachers = (list(each) for each in zip(*pairs.values(), strict=True))
        self.labels = {"teacher.distance": list(pairs)}
        self.about = {"teacher.distance": {"unit": "1", "measured": "before the update of the step"}}

    def measure(self, step: probe.Step) -> probe.Measurement:  # noqa: ARG002 - the weights are those of now
        """Return the distances, shape (number of pairs,)."""
        owners, columns = list[int](), list[Tensor]()
        for each in pieces(self._students, self._teachers):
            student, teacher = each.rows
            columns.append(torch.stack([each.norms(student - teacher), each.norms(student)]))
            owners += each.owners
        distance, size = whole(torch.cat(columns, dim=1), owners, self._students, 2)
        return {"teacher.distance": torch.where(distance == 0, distance, distance / size)}


def _pairs(target: probe.Target) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """Yield the names of a student's and of its teacher's tensor, and both."""
    students = target.parameters
    if target.teacher is None:
        teachers, followed = students, counterparts(students)
    else:
        named = dict(target.teacher.named_parameters())
        teachers = {plain: named[name] for name, plain in plain_names(named).items()}
        followed = {name: name for name in teachers if name in students}
    for other, name in followed.items():
        student, teacher = students[name], teachers[other]
        if not is_lazy(student) and not is_lazy(teacher) and student.shape == teacher.shape:
            yield name, other, student, teacher


def _placed(tensor: Tensor) -> Any:
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)
