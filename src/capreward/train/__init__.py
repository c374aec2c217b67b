"""The bundled GRPO trainer: a group's image and prompt run once in the rollout, the policy's passes and the reference's.

`config` says what a run does, `policy` holds the model, `rollout` samples captions, `loss` turns advantages into gradients,
`loop` is the trainer, `metrics` what it writes down, `checkpoint` what survives a kill.
"""
