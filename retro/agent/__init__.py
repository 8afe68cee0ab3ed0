"""At run time: the agent that reflects, the samplers around its retrospective model, and the export of one."""
