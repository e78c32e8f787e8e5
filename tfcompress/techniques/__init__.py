"""The techniques: each takes a Keras model and returns a new, plain one."""
