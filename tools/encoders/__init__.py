"""MLM against RTD: the corpus, the two pretrainings, what their encoders know, and the report."""
