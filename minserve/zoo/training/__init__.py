"""How the zoo's models are trained: the network, the optimizers, the loop, and distillation."""
