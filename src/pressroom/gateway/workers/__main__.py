"""`python -m pressroom.gateway.workers`: a worker process. The server starts it."""

from pressroom.gateway.workers.worker import main

main()
