"""The tests that the pretended GPU can't run, each with its reason."""

SWAP = "a module can't be moved or converted while a graph of its parameters lives"
COMPILED = "torch.compile writes code for a real GPU"
LIMITS: dict[str, str] = {
    "test_copies_keep_their_penalty": SWAP,
    "test_compiled_models_give_the_same": COMPILED,
}
