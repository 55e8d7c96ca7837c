"""Real megatron-core models, on the CPU and without their weights' memory: a process of its own.

The one package that imports torch and megatron-core at the top; :mod:`ckpt_tool.mcore_check` starts
it and nothing else imports it, because megatron-core needs patches and leaves global state behind.
"""
