"""What teaches: exercises with a grader, and the study page."""
