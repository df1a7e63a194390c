"""What the assembler makes of the kernels of a program for an H100."""
