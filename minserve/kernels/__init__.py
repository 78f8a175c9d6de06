"""Kernel optimization (Miao et al., section 4.2.5): every operator beside its torch reference."""
