"""The parts of the engine `transformers`: what runs inside its process. Nothing here is imported by anything else.

    HTTP        server.py → routes.py → asked.py (what a request says) → answering.py (frames and bodies)
    text        vocabulary.py, speech.py (tokens to text), chat.py, calls.py, grammar.py
    the model   loading.py, rows.py (the batch and its KV), prefixes.py, picking.py (sampling), scheduler.py
    embeddings  embedding.py

Two threads matter: the event loop of the server, and the one that runs the model. They meet in `Scheduler.submit` and
in what it hands back.
"""

__all__: list[str] = []
