"""Steering: directions that outlive a run, and what they gain and cost."""
