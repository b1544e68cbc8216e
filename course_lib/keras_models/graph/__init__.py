"""The module that runs: `KerasModel` and the steps of its forward pass.

Read `model` first, then `walk` (what a step is, and the tape that records steps) and
`plan`, which finds them with meta tensors: shapes, masks and the order of axes. `order`
says in which order Keras runs the calls.
"""
