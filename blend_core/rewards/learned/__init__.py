"""Rewards that networks with weights of their own give: each one's files, networks and preprocessing."""
