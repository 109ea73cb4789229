"""The attentions that Native Sparse Attention is compared with."""
