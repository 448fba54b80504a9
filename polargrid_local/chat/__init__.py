"""Messages to text: chat templates in a sandbox that knows which characters a user typed. Pure."""
