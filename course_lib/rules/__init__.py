"""Optimization rules as values: each is two functions, `init` and `apply`.

A rule holds hyperparameters and nothing else; it can't change. `init(x)` makes the
state for one array, `apply(state, x, g)` returns a new state and the step `dx`, and the
new array is x - dx. `course_lib.explicit` applies a rule to all arrays of a model.

In the formulas, g is the gradient, t counts the steps from 1, and
m^ = m / (1 - beta1**t), v^ = v / (1 - beta2**t). Forms and defaults are those of
Optimisers.jl 0.4 (Flux's rules) unless a docstring says otherwise. Half-precision
arrays are stepped in float32; |g|**2 is g times its conjugate, so complex arrays work.

Read `base` first, then `plain`, `adaptive` and `adam`, `decay` and `clipping`,
`composing` and `groups`. `hyperparameters` and `counts` serve them.
"""

from course_lib.rules.adam import (
    AdaBelief,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    NAdam,
    OAdam,
    RAdam,
)
from course_lib.rules.adaptive import AdaDelta, AdaGrad, RMSProp
from course_lib.rules.base import Rule
from course_lib.rules.clipping import ClipGlobalNorm, ClipGrad, ClipNorm
from course_lib.rules.composing import AccumulateGradients, Chain, MixedPrecision
from course_lib.rules.decay import SignDecay, WeightDecay
from course_lib.rules.plain import Descent, Lion, Momentum, Nesterov, Rprop

__all__ = [
    "AMSGrad",
    "AccumulateGradients",
    "AdaBelief",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adam",
    "AdamW",
    "Chain",
    "ClipGlobalNorm",
    "ClipGrad",
    "ClipNorm",
    "Descent",
    "Lion",
    "MixedPrecision",
    "Momentum",
    "NAdam",
    "Nesterov",
    "OAdam",
    "RAdam",
    "RMSProp",
    "Rprop",
    "Rule",
    "SignDecay",
    "WeightDecay",
]
