"""The families of losses between tensors, one a file. Users import them from `fcfd.losses`."""
