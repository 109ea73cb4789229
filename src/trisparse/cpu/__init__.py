"""Backend "cpu": native kernels in C++, built when they are first needed."""
