"""Reports of what the assembler makes of a program's kernels for an H100."""
