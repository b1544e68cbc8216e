"""A GPU that is pretended on the CPU, so that tests for CUDA run on every machine.

Its tensors say that they are on "cuda:0" and refuse what a GPU refuses: a tensor or a
generator of the CPU, and NumPy. Waits of the host for the device are counted. Read
`hooks` (what torch must be given before its import), `tensors` (the device itself),
`patches` (torch.cuda around one test) and `limits` (which tests it can't run, and why).
"""
