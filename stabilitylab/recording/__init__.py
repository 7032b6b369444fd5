"""What the recorder is made of: instruments, buffers, a budget, mirrors, a self-check, and other processes."""
