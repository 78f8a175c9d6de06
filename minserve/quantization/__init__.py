"""Low-bit quantization (Miao et al., section 3.2.1): how weights are stored in few bits."""
