"""fp4forge builds, proves and ships vLLM images with native NVFP4 for NVIDIA Blackwell GPUs.

The modules follow the way of the data:
release + gpu -> plan -> render -> build -> verify -> publish.
"""

__version__ = "0.1.0"
