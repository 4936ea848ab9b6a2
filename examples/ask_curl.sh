#!/bin/sh
# Ask a running gateway with nothing but curl. OPENAI_BASE_URL and MODEL say where and whom to ask.
set -eu
base=${OPENAI_BASE_URL:-http://127.0.0.1:8080/v1}
model=${MODEL:-smollm2}

echo "== models"
curl --silent --show-error --fail-with-body "$base/models"

echo; echo "== an answer"
curl --silent --show-error --fail-with-body "$base/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'",
  "messages": [{"role": "user", "content": "Say hello in one word."}],
  "max_tokens": 16
}'

echo; echo "== a stream"
curl --silent --show-error --fail-with-body --no-buffer "$base/completions" -H 'Content-Type: application/json' -d '{
  "model": "'"$model"'",
  "prompt": "The printing press was",
  "max_tokens": 8,
  "stream": true
}'
