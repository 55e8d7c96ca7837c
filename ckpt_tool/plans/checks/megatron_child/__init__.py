"""Real megatron-core models, on the CPU and without their weights' memory: a process of its own.

The one package that imports torch and megatron-core at the top. The module beside it,
:mod:`ckpt_tool.plans.checks.megatron` starts it, and nothing
else imports it: megatron-core needs patches and leaves state behind.
"""
