"""Words: what requests and replies are, a request made into a job, and events made into chunks. Pure."""
