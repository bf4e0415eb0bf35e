"""Independent implementations, in torch, of what the product computes in TVM."""
