"""The engines in torch. Read `sweeps` first: the paper's loop and its cached form.

`network` has the model's operations as torch.fx records them, `eligibility` the models
that it must refuse, and `kinds` what each operation does. `incremental` is the fast
engine: a `plan` says how a change of one channel runs through the network, `dense`
layers spread it, the `pipeline` computes the rest, and `prefixes` store layers' inputs
from one sweep for the next. `on_device` is its form for a GPU, which takes the same
operations for each weight. `kernels` has the arithmetic of all of them.
"""
