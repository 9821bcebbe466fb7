"""Words and scores for the rows that rules keep, by a vision-language model behind a server, or by templates alone."""
