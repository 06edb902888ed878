"""Methods by name, and what is known of each before it is built."""

from dataclasses import replace

import pytest
from torch import Tensor, nn

from diptych.config.method import DistillationConfig, LossConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.methods.build import METHODS, MethodKind, OwnParts, find_method, has_keys, uses_labels
from diptych.methods.losses import supervised_contrastive
from diptych.methods.objective import Loss


def gap(positive: Tensor, negatives: Tensor, settings: LossConfig) -> Tensor:
    return nn.functional.softplus(negatives - positive).mean()


def test_what_is_known_of_a_method_from_its_config() -> None:
    contrastive, student = RunConfig(), RunConfig(distillation=DistillationConfig(teacher="run"))
    supervised = replace(
        contrastive, method=replace(contrastive.method, loss=LossConfig("supervised"))
    )
    own = replace(contrastive, method=replace(contrastive.method, kind="own"))
    assert [has_keys(one) for one in (contrastive, student, own)] == [True, False, False]
    assert [uses_labels(one) for one in (contrastive, student, supervised)] == [False, True, True]
    labelled = Loss(None, lambda candidates, _: 0.0, supervised_contrastive, needs_labels=True)
    assert uses_labels(contrastive, OwnParts(loss=labelled))
    assert not uses_labels(supervised, OwnParts(loss=Loss(gap, lambda candidates, _: 0.0)))
    told = MethodKind(METHODS["contrastive"].build, uses_labels=lambda _: True)
    assert uses_labels(own, OwnParts(method=told))
    assert find_method(own, OwnParts(method=told)) is told


def test_a_method_that_is_not_there_is_refused_with_the_names() -> None:
    unknown = RunConfig(method=replace(RunConfig().method, kind="moco_v9"))
    with pytest.raises(ConfigError, match="one of contrastive, dense, distillation, byol"):
        find_method(unknown)
