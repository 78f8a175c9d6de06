"""Low-bit quantization (Miao et al., v2, section 3.2.1): how weights are stored in few bits."""
