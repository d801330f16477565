#!/usr/bin/env bash
# Lints the chart, renders it for one and for three processes and checks what comes out:
#   deploy/helm/check.sh HELM OUT [KUBECONFORM]
# HELM is the program, OUT a folder for the rendered files, KUBECONFORM a program that knows the
# schemas of Kubernetes. What the files hold is checked by `cargo test -p omnify-bench --test chart`.
set -euo pipefail
helm="$1" out="$2" kubeconform="${3:-}"
chart="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/omnify"
mkdir -p "$out"
"$helm" lint --strict "$chart" --set workers=1
for processes in 1 3; do
  "$helm" template ads "$chart" --set "processes=$processes,workers=2" > "$out/$processes.yaml"
  [ -z "$kubeconform" ] || "$kubeconform" -strict -summary "$out/$processes.yaml"
done
"$helm" template ads "$chart" --set "envFrom[0].secretRef.name=omnify-s3" \
  | grep -A2 "envFrom:" | grep -q "name: omnify-s3"
# More processes than one need a number of workers, and the chart says so.
if said="$("$helm" template ads "$chart" --set processes=2 2>&1)"; then
  echo "check: processes without workers were rendered" >&2
  exit 1
fi
grep -q "workers must be a number" <<< "$said"
