"""What a pool will yield next week, and how likely it is to fail: models of the past, whose forecasts are data."""
