"""Scripts that build, test and measure this repository; they are not installed with llmjax."""
