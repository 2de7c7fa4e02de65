"""The same training step on a GPU, as Triton kernels. Called by `sae.triton_step`."""
