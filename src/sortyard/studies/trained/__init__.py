"""Studies of whole trainings: arms, each trained with several seeds on the same text in the same order."""
