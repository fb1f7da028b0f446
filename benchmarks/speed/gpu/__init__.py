"""Training steps on one GPU: ours, from memory and from disk, and those of TorchRec's modules. docs/gpu.md has the figures."""
