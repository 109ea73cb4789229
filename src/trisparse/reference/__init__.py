"""The specification in code: one equation per function, quadratic, to fp64, differentiable by autograd."""
