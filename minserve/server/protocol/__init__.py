"""The bodies of requests and answers, in the shapes of OpenAI and vLLM."""
