"""The policy stage apart from its algorithm: rollouts, rewards' inputs, the guard, records, checkpoints, the roles."""
