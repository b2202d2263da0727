"""Other people's weights and networks."""
