"""The calls of the REST API by noun; `WorkbenchClient` has them all."""
