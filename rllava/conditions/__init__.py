"""What a model is shown in place of the clean input, one file per kind; none of them knows Ray."""
