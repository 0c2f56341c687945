#!/usr/bin/env bash
# Commits what changed in the checkout to a branch, and opens or updates its pull request with gh.
# Usage: pull-request.sh BRANCH TITLE BODY-FILE. Without a change it does nothing.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"
branch=$1 title=$2 body=$3

if [ -z "$(git status --porcelain)" ]; then
  echo "pull-request: nothing changed" >&2
  exit 0
fi
gh auth setup-git
git switch --quiet --force-create "$branch"
git add --all
git -c user.name=fp4forge -c user.email=fp4forge@users.noreply.github.com \
  commit --quiet --message "$title"
git push --quiet --force origin "$branch"
if gh pr view "$branch" --json state --jq .state 2>/dev/null | grep -qx OPEN; then
  gh pr edit "$branch" --title "$title" --body-file "$body"
else
  gh pr create --head "$branch" --title "$title" --body-file "$body"
fi
