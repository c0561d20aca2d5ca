"""The experiment: its parameters and plan, its stages, its statistics and figures."""
