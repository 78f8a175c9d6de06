"""Low-bit quantization (Miao et al., section 4.1.2): how weights are stored in few bits."""
