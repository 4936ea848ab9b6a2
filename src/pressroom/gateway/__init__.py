"""The data plane: one address in front of every engine, speaking the protocols clients already know."""
