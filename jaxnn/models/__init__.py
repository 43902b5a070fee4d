"""Models, one module each; in each, `manual_grad` equals `jax.grad(loss)`."""
