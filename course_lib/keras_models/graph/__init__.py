"""The module that runs: `KerasModel` and the steps of its forward pass.

Read `model` first, then `walk` (what a step is) and `plan`, which finds the steps with
meta tensors: shapes, masks and the order of axes. `order` says in which order Keras
runs the calls.
"""
