"""Each module gets its own mode back."""

import pytest
import torch
from torch import nn

from course_lib.modes import restored_modes


def mixed():
    """A model in train mode with a part in eval mode, and a module used twice."""
    shared = nn.Dropout()
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), shared, shared)


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_each_module_gets_its_own_mode_back(mode, error):
    model = mixed()
    before = modes(model)
    assert before == [True, True, False, True]

    def change():
        with restored_modes(model.modules()):
            model.train(mode)
            assert set(modes(model)) == {mode}
            if error:
                raise error("ours")

    if error:
        with pytest.raises(error, match="ours"):
            change()
    else:
        change()
    assert modes(model) == before


def test_modules_that_are_not_named_keep_what_they_got():
    model = mixed()
    with restored_modes([model[1]]):
        model.eval()
        model[1].train()
    assert modes(model) == [False] * 4
    model.train()
    with restored_modes([model]):
        model.eval()
    assert modes(model) == [True, False, False, False]


def test_a_module_that_is_removed_meanwhile_gets_it_back_too():
    model = mixed()
    norm = model[1]
    with restored_modes(model.modules()):
        model[1] = nn.Identity()
        norm.train()
    assert not norm.training


def test_it_is_compiled_without_a_break():
    model = mixed()

    @torch.compile(backend="eager", fullgraph=True)
    def step(x):
        with restored_modes(model.modules()):
            model.eval()
            return model(x)

    x = torch.ones(3, 2)
    torch.testing.assert_close(step(x), model[1](model[0](x)))
    assert modes(model) == [True, True, False, True]
