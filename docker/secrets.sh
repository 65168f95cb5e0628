#!/bin/sh
# Makes the secrets of compose.yaml that are missing. The folder is closed to other users; the files are not, because
# the containers' users have other ids.
set -eu
cd "$(dirname "$0")"
mkdir -p -m 700 secrets
for name in ray_token postgres_password s3_password mlflow_password mlflow_key; do
  [ -s "secrets/$name" ] || od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
  chmod 644 "secrets/$name"
done
