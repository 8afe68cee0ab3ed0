"""What turns the buffer, or scored samples, into updates of the policy: one file an algorithm."""
