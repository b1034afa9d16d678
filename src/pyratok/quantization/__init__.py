"""Binary words: bit order, lookup-free quantization, entropy and usage."""
