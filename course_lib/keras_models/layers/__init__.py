"""The layers: each is a module that reads its settings, then takes shape."""
