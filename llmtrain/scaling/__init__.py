"""The law: from a table of runs to the model to train next. numpy and scipy only."""
