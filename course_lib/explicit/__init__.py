"""Train explicitly: parameters, state and gradients are plain trees of tensors.

Nothing is hidden in the model or in the optimizer. A step gets what it reads as
arguments, and returns what it computes:

    params = parameters(model)
    state = setup(Adam(1e-3), params)
    for x, y in batches:
        value, grads = with_gradient(lambda p: loss(call(model, p, x), y), params)
        state, params = update(state, params, grads)
    store(model, params)

A model's tree mirrors it: {"encoder": {"weight": ..., "bias": ...}, ...}. Other trees
may have lists, tuples and named tuples in them, or be one tensor. A tensor that stands
at several places of `params` is tied: one tensor, one state, one step.
(Inside torch.func.vmap, ties are lost: each place has a tensor of its own.)

What a model has frozen with `requires_grad_(False)` is frozen in the state, too.

Read `calls` and `gradients`, then `states`, `steps` and `loop`. `substitution` puts
tensors into a module, `gathering` checks the trees of a step, `graphs` tells whether a
step is differentiated, `state_files` saves and loads.
"""

from course_lib.explicit.calls import buffers, call, parameters, store, substitute
from course_lib.explicit.gradients import gradient, with_gradient
from course_lib.explicit.loop import NonFiniteLoss, train
from course_lib.explicit.state_files import load, save
from course_lib.explicit.states import Leaf, adjust, freeze, setup, thaw
from course_lib.explicit.steps import update, update_
from course_lib.trees import destructure, trainables

__all__ = [
    "Leaf",
    "NonFiniteLoss",
    "adjust",
    "buffers",
    "call",
    "destructure",
    "freeze",
    "gradient",
    "load",
    "parameters",
    "save",
    "setup",
    "store",
    "substitute",
    "thaw",
    "train",
    "trainables",
    "update",
    "update_",
    "with_gradient",
]
