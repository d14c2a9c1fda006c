#!/usr/bin/env bash
# Regenerates api/droverv1 from api/proto with the generators pinned in
# tools/go.mod. Needs protoc (Debian: protobuf-compiler).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin/tools
(cd tools && go build -o ../bin/tools/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go)
PATH="$PWD/bin/tools:$PATH" protoc -I api/proto \
  --go_out=. --go_opt=module=github.com/drover-vm/drover \
  --connect-go_out=. --connect-go_opt=module=github.com/drover-vm/drover,simple \
  api/proto/drover/v1/*.proto
