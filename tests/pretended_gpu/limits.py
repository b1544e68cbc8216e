"""What the pretended GPU can't do: the tests that it can't run, each with its reason."""

LIMITS: dict[str, str] = {}
