"""Where and how exactly numbers are computed: the meta device, float32 proper, tensor cores."""
