"""The specification in code: one equation per function, quadratic, any dtype to fp64, differentiable by autograd."""
