"""The engines in torch: the model as a list of operations, and the sweeps over it."""
