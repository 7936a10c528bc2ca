"""What a run is: configuration, FLOPs, schedules, recipes, plans and records. Standard library only."""
