"""Programs that run in the stages of a build; the standard library and fp4forge.kernels only."""
