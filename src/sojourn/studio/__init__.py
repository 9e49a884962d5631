"""The studio: what is kept of jobs, pictures and ratings, and the processes that do the work."""
