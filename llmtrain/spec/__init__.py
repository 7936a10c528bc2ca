"""What a run is: configuration, FLOPs, schedules, recipes, plans, records. Plain Python."""
