"""What our own tests rest on, shipped so that others can test their kernels with it."""
